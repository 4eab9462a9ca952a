"""Triton, the model repository on disk, the database and the bus."""
