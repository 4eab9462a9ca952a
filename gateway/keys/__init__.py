"""API keys: created, stored as digests, checked on every request."""
