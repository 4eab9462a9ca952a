"""Collects raw records by push, by pull and from the bus, and publishes them durably."""
