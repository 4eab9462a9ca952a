"""Implementations of the ports: disk, base models, runtimes, model registry, bus."""
