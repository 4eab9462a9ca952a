"""The unit that operators on single records work on: columns of texts and attributes, and who was dropped.

Operators get many records at once because the cost of a call is larger than the work on a short text; what
becomes of a record never depends on its neighbours (a test holds that).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.cleaning.domain.record import Cleaned, Rejection
from services.cleaning.engine.limits import TextRefusedError, too_large_records, too_large_texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# Longer attributes than this do not repeat.
_REPEATED_CHARS = 64


@dataclass(frozen=True, slots=True)
class CodePoints:
    """All texts of a batch as one array: `codes` uint32 [total], `starts` int64 [n], `lengths` int64 [n]."""

    codes: NDArray[np.uint32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def code_points(texts: Sequence[str]) -> CodePoints:
    """The code points of texts, end to end."""
    import numpy as np

    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    starts = np.zeros(len(texts), dtype=np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return CodePoints(codes, starts, lengths)


class Batch:
    """Records that are still alive, by column; a dropped record leaves the columns and keeps its reason."""

    def __init__(self, records: Iterable[tuple[str, Mapping[str, str]]]) -> None:
        pairs = list(records)
        self.texts: list[str] = [text for text, _ in pairs]
        self.attributes: list[dict[str, str]] = [dict(attributes) for _, attributes in pairs]
        self._place = list(range(len(pairs)))
        self._given = [attributes for _, attributes in pairs]
        self._rejected: dict[int, tuple[Rejection, Mapping[str, str]]] = {}
        self._codes: CodePoints | None = None
        self._codes_of: list[str] | None = None
        # Whether an attribute was written since somebody last looked; all of them are new at first.
        self.attributes_changed = True
        # Name of the operator at work, for the reasons of what it drops.
        self.operator = "input"

    def map_texts(self, function: Callable[[str], str]) -> None:
        """Replaces every text; drops those that the function refuses."""
        try:
            self.texts = [function(text) for text in self.texts]
        except TextRefusedError:
            found: dict[int, Rejection] = {}
            texts: list[str] = []
            for position, text in enumerate(self.texts):
                try:
                    texts.append(function(text))
                except TextRefusedError as refused:
                    texts.append("")
                    found[position] = self._refusal(refused, "text")
            self.texts = texts
            self.reject(found)

    def map_attributes(self, function: Callable[[str], str], names: Collection[str] | None = None) -> None:
        """Replaces the attributes of these names, or all of them; drops records of which one is refused."""
        found: dict[int, Rejection] = {}
        # Attributes repeat: labels, topics, languages.
        known: dict[str, str] = {}
        for position, attributes in enumerate(self.attributes):
            for name in attributes if names is None else names:
                value = attributes.get(name)
                if value is None:
                    continue
                new = known.get(value)
                if new is None:
                    try:
                        new = function(value)
                    except TextRefusedError as refused:
                        found[position] = self._refusal(refused, name)
                        continue
                    if len(value) <= _REPEATED_CHARS:
                        known[value] = new
                if new != value:
                    attributes[name] = new
                    self.attributes_changed = True
        self.reject(found)

    def drop_too_large(self) -> None:
        """Drops what the operator at work made larger than a record may be."""
        self.reject(too_large_texts(self.texts, self.operator))
        if self.attributes_changed:
            self.attributes_changed = False
            self.reject(too_large_records(self.texts, self.attributes, self.operator))

    def _refusal(self, refused: TextRefusedError, field: str) -> Rejection:
        return Rejection(refused.reason, f"operator={self.operator} field={field} {refused.detail}")

    def code_points(self) -> CodePoints:
        """Code points of the texts, made once for all operators that look at the same texts."""
        if self._codes is None or self._codes_of is not self.texts:
            self._codes, self._codes_of = code_points(self.texts), self.texts
        return self._codes

    def reject(self, found: Mapping[int, Rejection]) -> None:
        """Drops records by their present position."""
        if not found:
            return
        for position, rejection in found.items():
            self._rejected[self._place[position]] = (rejection, self.attributes[position])
        keep = [position for position in range(len(self.texts)) if position not in found]
        self.texts = [self.texts[position] for position in keep]
        self.attributes = [self.attributes[position] for position in keep]
        self._place = [self._place[position] for position in keep]

    def result(self) -> list[Cleaned]:
        """One verdict for each record, in the order in which they came."""
        alive = dict(zip(self._place, zip(self.texts, self.attributes, strict=True), strict=True))
        verdicts: list[Cleaned] = []
        for position in range(len(self._given)):
            if position in alive:
                verdicts.append(Cleaned(*alive[position]))
            else:
                rejection, attributes = self._rejected[position]
                verdicts.append(Cleaned("", attributes, rejection))
        return verdicts
