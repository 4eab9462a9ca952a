"""Training runs: the rules, independent of what computes them."""
