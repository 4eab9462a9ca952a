"""Fails for a locked package that is known to be vulnerable: `make check` compares the lock with a dated list."""
