"""gRPC doors of the inference service."""
