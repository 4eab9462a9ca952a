"""Text work: operators, the registry that finds them, and the compiler that makes a recipe of them. No I/O."""
