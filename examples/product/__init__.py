"""A small product whose customers teach its model. `make loop` runs it; `story` says what happens."""
