"""Doors of training: gRPC, and the loop beside it."""
