"""Models and their versions: the rules, independent of what serves them."""
