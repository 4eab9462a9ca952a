"""Each figure measured side by side with a peer, in one run. `python -m benchmarks.engine` measures runtimes."""
