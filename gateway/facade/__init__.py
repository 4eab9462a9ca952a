"""The mesh's public gRPC services on one port, passed on as bytes."""
