"""Entry points: gRPC calls, events, background work."""
