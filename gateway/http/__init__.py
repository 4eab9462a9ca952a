"""The HTTP doors: OpenAI's dialect, KServe V2, records, feedback, health, metrics."""
