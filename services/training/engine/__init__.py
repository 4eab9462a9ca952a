"""Mathematics of training: batches, the loop, methods, evaluation. No I/O, no transport; torch is imported lazily."""
