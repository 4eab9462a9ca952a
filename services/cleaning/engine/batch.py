"""The unit that operators on single records work on: columns of texts and attributes, and the dropped records.

Operators get many records at once, because a call costs more than the work on a short text. The result for a record
never depends on the others (a test ensures that).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from services.cleaning.domain.record import Cleaned, Rejection
from services.cleaning.engine.limits import TextRefusedError, too_large_records, too_large_texts
from services.masking.code_points import CodePoints, code_points


class Column:
    """Texts that an operator processes together: the records' texts, or the values of attributes."""

    __slots__ = ("_points", "texts")

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self._points: CodePoints | None = None

    def code_points(self) -> CodePoints:
        """Code points of the texts, computed once for all operators that use them."""
        if self._points is None:
            self._points = code_points(self.texts)
        return self._points


class Batch:
    """The remaining records, by column; a dropped record leaves the columns, and its rejection is kept."""

    def __init__(self, records: Iterable[tuple[str, Mapping[str, str]]]) -> None:
        pairs = list(records)
        self.texts: list[str] = [text for text, _ in pairs]
        self.attributes: list[dict[str, str]] = [dict(attributes) for _, attributes in pairs]
        self._place = list(range(len(pairs)))
        self._given = [attributes for _, attributes in pairs]
        self._rejected: dict[int, tuple[Rejection, Mapping[str, str]]] = {}
        self._column: Column | None = None
        # Set when an attribute is written, cleared by whoever checked the attributes; at first all are unchecked.
        self.attributes_changed = True
        # Name of the current operator, for its rejections; empty before the first and after the last operator.
        self.operator = ""

    def column(self) -> Column:
        """The texts; the same object as long as no text changes."""
        if self._column is None or self._column.texts is not self.texts:
            self._column = Column(self.texts)
        return self._column

    def map_texts(self, function: Callable[[Column], Sequence[str]]) -> None:
        """Replaces every text; drops those that the function refuses."""
        try:
            new = function(self.column())
        except TextRefusedError:
            new, refused = self._one_by_one(function, self.texts)
            self.texts = new
            self.reject({position: self._refusal(error, "text") for position, error in refused.items()})
            return
        if new is not self.texts:
            self.texts = list(new)

    def map_attributes(self, function: Callable[[Column], Sequence[str]], names: Collection[str] | None = None) -> None:
        """Replaces the attributes of these names, or all; drops records with an attribute that the function refuses."""
        values = self._attribute_values(names)
        if not values:
            return
        old = list(values)
        refused: Mapping[int, TextRefusedError] = {}
        try:
            new = function(Column(old))
        except TextRefusedError:
            new, refused = self._one_by_one(function, old)
        changed = {value: made for value, made in zip(old, new, strict=True) if made != value}
        if not changed and not refused:
            return
        self.attributes_changed = True
        found: dict[int, Rejection] = {}
        for position, attributes in enumerate(self.attributes):
            for name in list(attributes) if names is None else names:
                value = attributes.get(name)
                if value is None:
                    continue
                if (error := refused.get(values[value])) is not None:
                    found[position] = self._refusal(error, name)
                elif value in changed:
                    attributes[name] = changed[value]
        self.reject(found)

    def _attribute_values(self, names: Collection[str] | None) -> dict[str, int]:
        """Distinct values of these attributes, or of all, numbered from 0.

        Attribute values repeat (labels, topics, languages), so each distinct value is processed once.
        """
        values: dict[str, int] = {}
        for attributes in self.attributes:
            for name in attributes if names is None else names:
                if (value := attributes.get(name)) is not None:
                    values.setdefault(value, len(values))
        return values

    @staticmethod
    def _one_by_one(
        function: Callable[[Column], Sequence[str]], texts: Sequence[str]
    ) -> tuple[list[str], dict[int, TextRefusedError]]:
        new: list[str] = []
        refused: dict[int, TextRefusedError] = {}
        for position, text in enumerate(texts):
            try:
                new += function(Column([text]))
            except TextRefusedError as error:
                new.append(text)
                refused[position] = error
        return new, refused

    def judge_texts(self, function: Callable[[Column], Mapping[int, Rejection]]) -> None:
        """Drops the records whose text the function rejects."""
        self.reject(function(self.column()))

    def judge_attributes(
        self, function: Callable[[Column], Mapping[int, Rejection]], names: Collection[str] | None = None
    ) -> None:
        """Drops the records for which the function rejects one of these attributes, or of all; the detail names it."""
        values = self._attribute_values(names)
        if not values:
            return
        wrong = function(Column(list(values)))
        if not wrong:
            return
        found: dict[int, Rejection] = {}
        for position, attributes in enumerate(self.attributes):
            for name in attributes if names is None else names:
                value = attributes.get(name)
                if value is not None and (rejection := wrong.get(values[value])) is not None:
                    detail = f"field={name} {rejection.detail}".rstrip()
                    found[position] = Rejection(rejection.reason, detail)
                    break
        self.reject(found)

    def drop_too_large(self) -> None:
        """Drops records that the current operator made larger than the limit."""
        operator = self.operator or "input"
        self.reject(too_large_texts(self.texts, operator))
        if self.attributes_changed:
            self.attributes_changed = False
            self.reject(too_large_records(self.texts, self.attributes, operator))

    def _refusal(self, refused: TextRefusedError, field: str) -> Rejection:
        return Rejection(refused.reason, f"operator={self.operator} field={field} {refused.detail}")

    def reject(self, found: Mapping[int, Rejection]) -> None:
        """Drops records by their current position."""
        if not found:
            return
        for position, rejection in found.items():
            by = rejection if rejection.operator else replace(rejection, operator=self.operator)
            self._rejected[self._place[position]] = (by, self.attributes[position])
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
