"""The frozen hold-out: a record's side follows from its content alone, so it never changes between versions.

What exceeds `max_records` goes to neither side: moved to training it would have to move back when records with a
smaller hash leave, and a model would be judged on what it has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.cleaning.domain.dataset import HoldoutSpec
from services.kit.ids import sha256_hex

SURPLUS_REASON = "holdout_surplus"
_SPAN = 1 << 64


@dataclass(frozen=True, slots=True)
class Split:
    """Record ids by side, each in order; `surplus` was drawn for the hold-out beyond its limit."""

    train: Sequence[str]
    holdout: Sequence[str]
    surplus: Sequence[str]


def position(salt: str, content_key: str) -> float:
    """Where a content stands on [0, 1); below the fraction is the hold-out."""
    return int(sha256_hex(salt, content_key)[:16], 16) / _SPAN


def split(content_keys: Mapping[str, str], holdout: HoldoutSpec, salt: str) -> Split:
    """Divides records.

    Args:
        content_keys: normalised content by record id; equal content goes to the same side.
        holdout: share and limit.
        salt: the data set's name, so that two data sets hold out different records.
    """
    train: list[str] = []
    drawn: list[tuple[float, str]] = []
    for record_id in sorted(content_keys):
        place = position(salt, content_keys[record_id])
        if place < holdout.fraction:
            drawn.append((place, record_id))
        else:
            train.append(record_id)
    drawn.sort()
    limit = holdout.max_records or len(drawn)
    return Split(train, sorted(i for _, i in drawn[:limit]), sorted(i for _, i in drawn[limit:]))
