"""Records and imports, independent of how they arrive."""
