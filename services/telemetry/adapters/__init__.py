"""Implementations of the ports: Elasticsearch and Prometheus."""
