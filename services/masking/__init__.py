"""A library that masks personal data in texts, for cleaning and for captured answers. No I/O."""
