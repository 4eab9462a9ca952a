"""Entry points of the service: the gRPC servicer, the consumer of raw records, the worker."""
