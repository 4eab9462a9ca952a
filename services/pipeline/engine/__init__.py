"""What computes: statistics of experiments."""
