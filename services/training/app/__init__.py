"""Use cases of training and the ports that they need."""
