"""Implements the ports: the database, the peers and the bus."""
