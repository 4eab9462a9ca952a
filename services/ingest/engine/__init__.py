"""Bytes of sources to records; no I/O."""
