"""Text work: operators, the registry that finds them, and the compiler of recipes. No I/O."""
