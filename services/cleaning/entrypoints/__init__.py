"""Doors of the service: the gRPC servicer, the consumer of raw records, the worker's loop."""
