"""Answering, the table of routes, and their ports."""
