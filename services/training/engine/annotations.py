"""Named parts of texts as a data set has them: JSON in a column, and a baseline that only remembers spans."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from services.kit.errors import FailedPreconditionError
from services.kit.spans import Span

_MEMBERS = {"start": int, "end": int, "label": str}


def spans_of_row(row: Mapping[str, str], column: str) -> list[Span]:
    """The spans in a record's column, in their order.

    Raises:
        FailedPreconditionError: it is not a JSON list of spans within the text, or two of them overlap; the message
            names the record.
    """
    text = row["text"]
    try:
        items = json.loads(row[column] or "[]")
        if not isinstance(items, list) or not all(_is_span(item) for item in items):
            raise ValueError("it is not a list of objects with start, end and label")
        spans = sorted((Span(i["start"], i["end"], i["label"]) for i in items), key=lambda span: span.start)
        for span in spans:
            if not 0 <= span.start < span.end <= len(text):
                raise ValueError(f"characters {span.start} to {span.end} are not in its text of {len(text)}")
        for one, other in itertools.pairwise(spans):
            if other.start < one.end:
                raise ValueError(f"the spans at {one.start} and {other.start} overlap")
    except ValueError as error:
        record = row.get("record_id", "")
        raise FailedPreconditionError(
            f"spec.token_classification.spans_field: column {column!r} of record {record} cannot be used: {error}.",
            reason="SPANS_UNREADABLE",
            metadata={"column": column, "record": record},
        ) from error
    return spans


def _is_span(item: object) -> bool:
    return isinstance(item, dict) and all(
        isinstance(item.get(name), kind) and not isinstance(item.get(name), bool) for name, kind in _MEMBERS.items()
    )


class Lexicon:
    """Finds the spans that it has seen in training texts, the longest first: the baseline that a model must beat."""

    def __init__(self, texts: Iterable[tuple[str, Sequence[Span]]]) -> None:
        seen: dict[str, Counter[str]] = {}
        for text, spans in texts:
            for span in spans:
                seen.setdefault(text[span.start : span.end], Counter())[span.label] += 1
        self._labels = {words: counts.most_common(1)[0][0] for words, counts in seen.items()}
        self._lengths = sorted({len(words) for words in self._labels}, reverse=True)

    def find(self, text: str) -> list[Span]:
        """Spans of a text, in their order."""
        found: list[Span] = []
        at = 0
        while at < len(text):
            length = next((n for n in self._lengths if text[at : at + n] in self._labels and at + n <= len(text)), 0)
            if length:
                found.append(Span(at, at + length, self._labels[text[at : at + length]]))
            at += length or 1
        return found
