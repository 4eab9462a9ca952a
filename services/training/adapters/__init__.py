"""Disk, models, runtimes, registry and transports behind training's ports."""
