"""Figures of a data set's records, in one pass with bounded memory: lengths, languages, values of attributes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.cleaning.domain.augmentation import OPERATOR_COLUMN, PARENT_COLUMN
from services.cleaning.engine.languages import likeliest_language

MAX_LABEL_VALUES = 50
"""An attribute with more distinct values is only counted, not taken for a label."""
SAMPLED_TEXTS = 2000
"""Texts of a part whose language is guessed."""

_READ_CHARACTERS = 600
# Below this, a guess says little.
_SHORTEST = 12
_SURE = 0.5
_UNKNOWN = "unknown"
_PLACEHOLDER = re.compile(r"\[[A-Z_]+\]")
_LONGEST_VALUE = 80


@dataclass(slots=True)
class PartFigures:
    """One part of a version: training, hold-out."""

    records: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    """Records by characters of their text."""
    sources: Counter[str] = field(default_factory=Counter)
    values: dict[str, Counter[str] | None] = field(default_factory=dict)
    """Records by value, for each attribute; None of one with more than `MAX_LABEL_VALUES`."""
    filled: Counter[str] = field(default_factory=Counter)
    """Records that have an attribute."""
    languages: Counter[str] = field(default_factory=Counter)

    def add(self, columns: Mapping[str, Sequence[str | None]], every: int) -> None:
        """Counts records.

        Args:
            columns: `text` and `source` and the attributes, equally long.
            every: the language of each text whose number it divides is guessed.
        """
        texts = columns["text"]
        for number, text in enumerate(texts, self.records):
            if number % every == 0:
                self.languages[language_of(text or "")] += 1
        self.records += len(texts)
        self.lengths.update(len(text or "") for text in texts)
        self.sources.update(source or "" for source in columns["source"])
        for name, column in columns.items():
            if name not in ("text", "source", "record_id", PARENT_COLUMN, OPERATOR_COLUMN):
                self._count(name, column)

    def _count(self, name: str, column: Sequence[str | None]) -> None:
        given = [value for value in column if value is not None]
        self.filled[name] += len(given)
        known = self.values.setdefault(name, Counter())
        if known is None:
            return
        known.update(given)
        if len(known) > MAX_LABEL_VALUES or any(len(value) > _LONGEST_VALUE for value in known):
            self.values[name] = None

    def quantile(self, share: float) -> int:
        """Length that this share of the texts does not exceed; 0 without texts."""
        wanted, seen = share * self.records, 0
        for length in sorted(self.lengths):
            seen += self.lengths[length]
            if seen >= wanted:
                return length
        return 0

    @property
    def mean(self) -> float:
        """Mean length; 0 without texts."""
        total = sum(length * count for length, count in self.lengths.items())
        return total / self.records if self.records else 0.0

    def histogram(self) -> list[tuple[str, int]]:
        """Records by length in doubling steps: `up to 63`, `64 to 127`, …; without empty steps at both ends."""
        if not self.records:
            return []
        steps = Counter[int]()
        for length, count in self.lengths.items():
            steps[length.bit_length()] += count
        first, last = min(steps), max(steps)
        return [(_step(bits), steps[bits]) for bits in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class CardFigures:
    """What a card shows."""

    name: str
    create_time: str
    digest: str
    records_in: int
    rejected: Mapping[str, int]
    """By reason."""
    operators: Sequence[tuple[str, str]]
    """Name, and parameters as JSON."""
    holdout_fraction: float
    parts: Mapping[str, PartFigures]
    """`training`, `hold-out`."""
    near_overlap: int = 0
    feedback: Mapping[str, int] = field(default_factory=dict)
    erased: int = 0
    variants: Mapping[str, int] = field(default_factory=dict)
    """By augmenter; they are among the records for training."""
    dropped_variants: Mapping[str, int] = field(default_factory=dict)
    """By reason."""

    def labels(self) -> list[str]:
        """Attributes whose values can be counted, in all parts."""
        names = dict.fromkeys(name for part in self.parts.values() for name in part.values)
        return [
            name for name in names if all(part.values.get(name, Counter()) is not None for part in self.parts.values())
        ]


def language_of(text: str) -> str:
    """ISO 639-1 code of the language of a text's beginning; `unknown` for one that is too short or has no letters."""
    # What masks leave would count as English.
    head = _PLACEHOLDER.sub(" ", text[:_READ_CHARACTERS])
    letters = sum(c.isalpha() for c in head)
    # A Chinese character says more than a Latin letter.
    if letters < _SHORTEST and sum(ord(c) > 0x2E7F for c in head) < _SHORTEST // 3:
        return _UNKNOWN
    code, sure = likeliest_language(head)
    return code if sure >= _SURE else _UNKNOWN


def _step(bits: int) -> str:
    if bits <= 1:
        return str(bits)
    return f"{1 << (bits - 1):,} to {(1 << bits) - 1:,}"
