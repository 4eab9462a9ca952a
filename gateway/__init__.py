"""The public entry points: gRPC, HTTP (OpenAI's API, KServe V2) and the command line."""
