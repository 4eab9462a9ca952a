"""Named parts of a text, and the tags of its tokens by which a model finds them; for training and for serving.

It goes with each published version into Triton; it therefore imports nothing of Tidemill's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text: characters `start` to `end`, the end not included, what it is, and how sure the model is."""

    start: int
    end: int
    label: str
    score: float = 1.0


def tags_for(labels: Sequence[str]) -> list[str]:
    """The tags of labels: `O`, and of each label `B-` for its first token and `I-` for the others (BIO)."""
    return [OUTSIDE, *(f"{prefix}-{label}" for label in sorted(labels) for prefix in "BI")]


def tags_of(spans: Sequence[Span], offsets: Sequence[tuple[int, int]]) -> list[str | None]:
    """The tag of each token; None for tokens that stand for no character, such as `[CLS]`.

    Args:
        spans: of the text, none within another.
        offsets: characters of each token, start and end.
    """
    tags: list[str | None] = []
    ordered = sorted(spans, key=lambda span: span.start)
    at, begun = 0, False
    for start, end in offsets:
        if start == end:
            tags.append(None)
            continue
        while at < len(ordered) and ordered[at].end <= start:
            at, begun = at + 1, False
        if at < len(ordered) and ordered[at].start < end:
            tags.append(f"{'I' if begun else 'B'}-{ordered[at].label}")
            begun = True
        else:
            tags.append(OUTSIDE)
    return tags


def spans_of(tags: Sequence[str], offsets: Sequence[tuple[int, int]], scores: Sequence[float]) -> list[Span]:
    """The spans that tags describe; an `I-` that continues nothing begins a span, as in the CoNLL evaluation.

    Args:
        tags: one for each token.
        offsets: characters of each token, start and end; those of equal start and end are left out.
        scores: probability of each tag. A span's is the mean of its tokens'.
    """
    found: list[tuple[int, int, str, list[float]]] = []
    label = ""
    for tag, (start, end), score in zip(tags, offsets, scores, strict=True):
        if start == end:
            continue
        prefix, _, name = tag.partition("-")
        if prefix == "I" and name == label:
            first, _, _, values = found[-1]
            found[-1] = (first, end, name, [*values, score])
        elif name:
            found.append((start, end, name, [score]))
        label = name
    return [Span(start, end, name, sum(values) / len(values)) for start, end, name, values in found]
