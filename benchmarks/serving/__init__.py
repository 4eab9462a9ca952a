"""What the serving plane costs: the gateway beside Triton asked directly."""
