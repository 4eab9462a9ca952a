"""Implementations of the ports: database, snapshot folders, announcements on the bus."""
