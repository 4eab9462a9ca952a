"""OpenTelemetry and Prometheus, set up the same way in every process."""
