"""The frozen hold-out: a record's side follows from its content alone, so it never changes between versions.

Records beyond `max_records` go to neither side. In the training set they would have to move back once records with a
smaller hash are gone, and a model would be measured on records that it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.cleaning.domain.dataset import HoldoutSpec
from services.kit.ids import sha256_hex

SURPLUS_REASON = "holdout_surplus"
_SPAN = 1 << 64


Key = TypeVar("Key", str, tuple[str, str])


@dataclass(frozen=True, slots=True)
class Split(Generic[Key]):
    """Keys of records by side, each in order; `surplus` was drawn for the hold-out beyond its limit."""

    train: Sequence[Key]
    holdout: Sequence[Key]
    surplus: Sequence[Key]


def position(salt: str, content_key: str) -> float:
    """The position of a content in [0, 1); positions below the hold-out's share belong to the hold-out."""
    return int(sha256_hex(salt, content_key)[:16], 16) / _SPAN


def split(content_keys: Mapping[Key, str], holdout: HoldoutSpec, salt: str) -> Split[Key]:
    """Divides records.

    Args:
        content_keys: normalised content by the record's key; equal content goes to the same side.
        holdout: share and limit.
        salt: the data set's name, so that two data sets hold out different records.
    """
    train: list[Key] = []
    drawn: list[tuple[float, Key]] = []
    for key in sorted(content_keys):
        place = position(salt, content_keys[key])
        if place < holdout.fraction:
            drawn.append((place, key))
        else:
            train.append(key)
    drawn.sort()
    limit = holdout.max_records or len(drawn)
    return Split(train, sorted(key for _, key in drawn[:limit]), sorted(key for _, key in drawn[limit:]))
