"""Entry points of training: gRPC, and the supervising loop beside it."""
