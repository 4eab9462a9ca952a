"""Use cases of the pipeline and the ports that they need."""
