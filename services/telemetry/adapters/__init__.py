"""What implements the ports: Elasticsearch and Prometheus."""
