"""Telemetry: receives OpenTelemetry's traces and logs, stores them in Elasticsearch, and searches them."""
