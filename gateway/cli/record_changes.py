"""Which records differ between two versions of a data set, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

PARTS: Mapping[str, str] = {"train": "for training", "holdout": "held out", "rejected": "rejected"}
"""The parts of a version that are compared, as people name them."""
KINDS = ("added", "removed", "changed", "moved", "rejected", "accepted")
"""In the order in which they are shown. A record that changed and moved counts as changed."""


@dataclass(frozen=True, slots=True)
class RecordChange:
    """A record that differs; a side is None where the version does not have the record.

    A side is a row of its part, with `part` beside its columns: text and attributes, or why it was rejected.
    """

    kind: str
    source: str
    record_id: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


def record_changes(before: Callable[[str], pa.Table | None], after: Callable[[str], pa.Table | None]) -> RecordChanges:
    """Compares two versions, whose parts the arguments read: None where a version has no such part."""
    old, new = _rows(before), _rows(after)
    keys: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}
    for key in sorted({*old, *new}):
        kind = _kind(old.get(key), new.get(key))
        if kind is not None:
            keys[kind].append(key)
    return RecordChanges(keys, old, new)


@dataclass(frozen=True, slots=True)
class RecordChanges:
    """All differences, by kind."""

    _keys: Mapping[str, list[tuple[str, str]]]
    _old: Mapping[tuple[str, str], Mapping[str, Any]]
    _new: Mapping[tuple[str, str], Mapping[str, Any]]

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {kind: len(keys) for kind, keys in self._keys.items()}

    def first(self, count: int) -> Iterator[RecordChange]:
        """At most `count` of each kind, by source and id."""
        for kind in KINDS:
            for key in self._keys[kind][:count]:
                yield RecordChange(kind, *key, self._old.get(key), self._new.get(key))


def _rows(read: Callable[[str], pa.Table | None]) -> dict[tuple[str, str], Mapping[str, Any]]:
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for part in PARTS:
        table = read(part)
        if table is None:
            continue
        for batch in table.to_batches():
            for row in batch.to_pylist():
                key = (row.pop("source"), row.pop("record_id"))
                found[key] = {"part": part, **row}
    return found


def _kind(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str | None:
    if old is None or new is None:
        return "added" if new is not None else "removed"
    was, now = old["part"] == "rejected", new["part"] == "rejected"
    if was != now:
        return "rejected" if now else "accepted"
    if was:
        # The same reason in other words does not change the data.
        return None if old["reason"] == new["reason"] else "changed"
    if any(old.get(name) != new.get(name) for name in {*old, *new} - {"part"}):
        return "changed"
    return None if old["part"] == new["part"] else "moved"
