"""What operators did to one record: their edits, field by field, and which of them dropped it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

from services.cleaning.domain.record import Cleaned, Rejection
from services.cleaning.engine.operator import TEXT_FIELD

MAX_EDITS: Final = 1000
"""Edits of one explanation; further ones are counted."""
MAX_EDIT_CHARS: Final = 256 * 1024
"""Characters of all edits of one explanation, before and after together."""
# Comparing takes time quadratic in the number of pieces; a text with more pieces is shown as one edit.
_MAX_LINES: Final = 2000
_MAX_PIECES: Final = 600
_PIECE: Final = re.compile(r"[^\W_]+(?<![\u3041-\u30ff\u3400-\u9fff])|\s+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Edit:
    """One replaced part of a field; `start` and `end` (exclusive) are positions in the operator's input."""

    start: int
    end: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class FieldChange:
    """The changes to one field: `text` or the name of an attribute."""

    field: str
    edits: Sequence[Edit]
    added: bool = False
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Effect:
    """What one operator did; `position` is its position among the operators that ran, from 0.

    `omitted_edits` is the number of edits that were left out because there were too many or they were too long.
    """

    position: int
    operator: str
    changes: Sequence[FieldChange] = ()
    rejection: Rejection | None = None
    omitted_edits: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """A verdict, and the effects of those operators that changed or dropped the record, in their order."""

    cleaned: Cleaned
    effects: Sequence[Effect]


class Explainer:
    """Collects the effects of operators on one record; bounded in edits and characters."""

    def __init__(self, text: str, attributes: Mapping[str, str]) -> None:
        self.effects: list[Effect] = []
        self._text = text
        self._attributes = dict(attributes)
        self._edits = MAX_EDITS
        self._chars = MAX_EDIT_CHARS

    def changed(self, position: int, operator: str, text: str, attributes: Mapping[str, str]) -> None:
        """Notes what the operator changed."""
        changes: list[FieldChange] = []
        omitted = 0
        before, after = {TEXT_FIELD: self._text}, {TEXT_FIELD: text}
        pairs = [(before, after), (self._attributes, attributes)]
        for old, new in pairs:
            for name in [*old, *(name for name in new if name not in old)]:
                if (was := old.get(name)) == (now := new.get(name)):
                    continue
                kept: list[Edit] = []
                for edit in edits(was or "", now or ""):
                    size = len(edit.before) + len(edit.after)
                    if self._edits and size <= self._chars:
                        kept.append(edit)
                        self._edits -= 1
                        self._chars -= size
                    else:
                        omitted += 1
                changes.append(FieldChange(name, kept, added=was is None, removed=now is None))
        if changes:
            self.effects.append(Effect(position, operator, changes, omitted_edits=omitted))
        self._text, self._attributes = text, dict(attributes)

    def dropped(self, position: int, rejection: Rejection) -> None:
        """Notes which operator dropped the record, and why."""
        self.effects.append(Effect(position, rejection.operator, rejection=rejection))


def edits(before: str, after: str) -> Iterator[Edit]:
    """The parts that differ, in order; applied to `before` from last to first, they give `after`.

    Words and Chinese characters are not split. A part with very many pieces is one edit.
    """
    start = _common(before, after)
    stop = _common(before[start:][::-1], after[start:][::-1])
    yield from _by_lines(before[start : len(before) - stop], after[start : len(after) - stop], start)


def _by_lines(before: str, after: str, place: int) -> Iterator[Edit]:
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    if len(old) == len(new) == 1 or max(len(old), len(new)) > _MAX_LINES:
        yield from _by_pieces(before, after, place)
        return
    for was, now, at in _differences(old, new):
        if len(was) != len(now):
            yield from _by_pieces("".join(was), "".join(now), place + at)
            continue
        for line, changed in zip(was, now, strict=True):
            yield from _by_pieces(line, changed, place + at)
            at += len(line)


def _by_pieces(before: str, after: str, place: int) -> Iterator[Edit]:
    old, new = _PIECE.findall(before), _PIECE.findall(after)
    if max(len(old), len(new)) > _MAX_PIECES:
        yield Edit(place, place + len(before), before, after)
        return
    for was, now, at in _differences(old, new):
        given = "".join(was)
        yield Edit(place + at, place + at + len(given), given, "".join(now))


def _differences(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[Sequence[str], Sequence[str], int]]:
    """Replaced pieces, their replacement, and the number of characters before them."""
    place, seen = 0, 0
    for tag, first, last, new_first, new_last in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        place += sum(map(len, old[seen:first]))
        seen = first
        if tag != "equal":
            yield old[first:last], new[new_first:new_last], place


def _common(one: str, other: str) -> int:
    """Length of the common prefix."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
