"""Use cases of cleaning and the ports that they need."""
