"""Every door for people and backends: gRPC, HTTP (OpenAI's dialect, KServe V2) and the command line."""
