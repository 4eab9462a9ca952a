"""The HTTP API: OpenAI-compatible chat, KServe V2, records, feedback, health, metrics."""
