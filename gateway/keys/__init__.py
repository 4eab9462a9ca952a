"""API keys: made, kept as digests, checked on every request."""
