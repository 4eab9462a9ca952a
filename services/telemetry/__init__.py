"""Telemetry: receives OpenTelemetry's traces and logs, keeps them in Elasticsearch, and finds them again."""
