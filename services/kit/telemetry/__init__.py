"""OpenTelemetry and Prometheus as every process uses them."""
