"""Everything around the services: the stack that runs them, and the files that others run them with."""
