"""Everything around the services: the stack that runs them on one machine, and files to run them elsewhere."""
