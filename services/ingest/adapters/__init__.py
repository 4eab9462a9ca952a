"""Implementations of the ports: database, sources by fsspec, records and announcements on the bus."""
