"""Use cases of serving and their ports."""
