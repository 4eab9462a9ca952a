"""Counts from outside, by id and digest: what was acknowledged against what the mesh holds.

It uses what any caller can use: the public doors and Kafka. It knows nothing of a service's inside, so that an error
in a service cannot hide here as well.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


def digest(content: bytes | str) -> str:
    """SHA-256 of a content, in hex."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


@dataclass(frozen=True, slots=True)
class Finding:
    """What does not add up in one place; ids, sorted."""

    place: str
    acknowledged: int
    lost: tuple[str, ...] = ()
    """Acknowledged and not there."""
    phantom: tuple[str, ...] = ()
    """There and sent by nobody."""
    duplicate: tuple[str, ...] = ()
    """There more than once."""
    altered: tuple[str, ...] = ()
    """There, with another content than was acknowledged."""

    @property
    def sound(self) -> bool:
        """Whether everything adds up."""
        return not (self.lost or self.phantom or self.duplicate or self.altered)

    def __str__(self) -> str:
        wrong = {
            "lost": self.lost,
            "phantom": self.phantom,
            "duplicate": self.duplicate,
            "altered": self.altered,
        }
        told = [f"{len(ids)} {name} ({', '.join(ids[:5])}…)" for name, ids in wrong.items() if ids]
        return f"{self.place}: {self.acknowledged} acknowledged, {', '.join(told) or 'all there once'}"


def compare(
    place: str,
    acknowledged: Mapping[str, str],
    found: Iterable[tuple[str, str]],
    uncertain: Mapping[str, str] | None = None,
) -> Finding:
    """Holds what is found in a place against what was acknowledged.

    Args:
        place: named in the finding.
        acknowledged: digest by id of what the mesh accepted.
        found: id and digest of each thing that is there.
        uncertain: digest by id of what was sent and got no answer: it may be there, once, or not.
    """
    uncertain = uncertain or {}
    there = list(found)
    counts = Counter(each for each, _ in there)
    sent = {**uncertain, **acknowledged}
    return Finding(
        place=place,
        acknowledged=len(acknowledged),
        lost=tuple(sorted(acknowledged.keys() - counts.keys())),
        phantom=tuple(sorted(counts.keys() - sent.keys())),
        duplicate=tuple(sorted(each for each, count in counts.items() if count > 1)),
        altered=tuple(sorted({each for each, content in there if each in sent and sent[each] != content})),
    )
