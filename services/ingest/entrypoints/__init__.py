"""Entry points of the service: the gRPC servicer, the consumer of foreign events, the worker."""
