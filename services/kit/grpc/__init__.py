"""gRPC servers, channels, interceptors, and the mapping of errors."""
