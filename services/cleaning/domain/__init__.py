"""Records, recipes and data sets: the rules, independent of transport and storage."""
