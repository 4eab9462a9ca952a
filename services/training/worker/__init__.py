"""The child process of a run: prepare, train, evaluate, compress. If killed, it resumes."""
