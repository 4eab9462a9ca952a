"""Order and grouping of training examples: determined by (seed, step), so that a resumed run sees the same batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# The examples of this many batches are sorted by length together: little padding, and still a random order.
_GROUP_BATCHES = 16


def batch_order(lengths: Sequence[int], batch_size: int, seed: int, *, start: int = 0) -> Iterator[list[int]]:
    """Endless batches of example indices, grouped by length, from batch number `start` on.

    Each pass over the data is shuffled again; an incomplete last batch of a pass is filled from the pass's beginning.

    Raises:
        ValueError: there are no examples.
    """
    import numpy as np

    count = len(lengths)
    if not count:
        raise ValueError("no training examples")
    per_epoch = -(-count // batch_size)
    epoch, skip = divmod(start, per_epoch)
    while True:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(count)
        order = np.concatenate([order, np.resize(order, per_epoch * batch_size - count)])
        group = batch_size * _GROUP_BATCHES
        batches = [
            chunk[i : i + batch_size]
            for chunk in (
                sorted(order[g : g + group].tolist(), key=lambda index: lengths[index])
                for g in range(0, len(order), group)
            )
            for i in range(0, len(chunk), batch_size)
        ]
        for number in rng.permutation(len(batches))[skip:]:
            yield batches[number]
        epoch, skip = epoch + 1, 0
