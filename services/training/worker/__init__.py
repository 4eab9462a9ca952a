"""The child process of a run: prepare, train, evaluate, compress. Killed at any time, it goes on where it was."""
