"""What is true of a training run, whatever computes it."""
