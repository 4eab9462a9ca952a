"""Cycles, gates and feedback; no I/O."""
