"""Triton, the log of served answers, and where routes come from."""
