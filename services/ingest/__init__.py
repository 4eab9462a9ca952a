"""Collects raw records, by push, by pull and from the bus, and makes them durable on the bus."""
