"""Training: fine-tunes, evaluates and compresses models. The result of a run is its measured builds."""
