"""gRPC as the mesh speaks it: servers, channels, interceptors, the mapping of errors."""
