"""Batches: requests in a file, answered in the background (docs/adr/0036)."""
