"""Entry points of the service: OTLP's receivers and the search, over gRPC."""
