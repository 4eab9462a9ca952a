"""Groups texts of similar length, so that little of a batch is padding: on a CPU padding costs as much as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# A batch may be this much larger than its tokens by padding; below that splitting costs more than it saves.
_WASTE = 1.25


def by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Positions of the texts, in groups of similar length; every position once.

    Args:
        lengths: tokens of each text.
    """
    group: list[int] = []
    tokens = 0
    for position in sorted(range(len(lengths)), key=lambda at: lengths[at]):
        length = lengths[position]
        if group and (len(group) + 1) * length > _WASTE * (tokens + length):
            yield group
            group, tokens = [], 0
        group.append(position)
        tokens += length
    if group:
        yield group
