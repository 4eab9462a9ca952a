"""Use cases of telemetry and the ports that they need."""
