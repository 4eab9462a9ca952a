"""The web console at `/console`: pages that are rendered here, from the calls that the command line makes, too."""
