"""Texts with marked personal data, and how much of it is found: by kind, on whole spans."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.masking.personal_data import Span

Sentence = tuple[str, tuple[Span, ...]]
"""A text and the personal data in it."""
FOLDER: Final = Path(__file__).parent
_MARKED: Final = re.compile(r"\{([a-z_]+)\|([^{}]*)\}")
_Z: Final = 1.959964


def sentences(half: str, language: str = "") -> list[Sentence]:
    """The sentences of `dev` or `held_out`: a line each, `{kind|text}` around personal data, `\\n` for a line's end.

    `# kind language` heads each part; `language` (zh or en) chooses those of one.
    """
    found, wanted = [], True
    for line in (FOLDER / f"{half}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            wanted = line.endswith(language)
        elif line and wanted:
            found.append(marked(line))
    return found


def marked(line: str) -> Sentence:
    """The text of a line with marks, and what they mark."""
    line = line.replace("\\n", "\n")
    text, spans, end = "", [], 0
    for match in _MARKED.finditer(line):
        text += line[end : match.start()]
        spans.append(Span(len(text), len(text) + len(match[2]), match[1]))
        text += match[2]
        end = match.end()
    return text + line[end:], tuple(spans)


@dataclass(slots=True)
class Count:
    """Of one kind: spans found, spans missed, and spans found where there are none."""

    right: int = 0
    missed: int = 0
    wrong: int = 0

    @property
    def recall(self) -> float:
        return self.right / max(1, self.right + self.missed)

    @property
    def precision(self) -> float:
        return self.right / max(1, self.right + self.wrong)


@dataclass(slots=True)
class Score:
    """Counts by kind, and what was missed or wrong, for a reader."""

    counts: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    errors: list[str] = field(default_factory=list)
    leaked: int = 0
    """Missed spans of which a letter or a digit is left: the others were masked as another kind."""


def score(texts: Iterable[Sentence], found: Iterable[Sequence[Span]], *, whole: bool = True) -> Score:
    """Compares what was found with what is there.

    A span is right if it is of the same kind and has the same letters and digits, so that brackets and spaces around
    a number do not matter, but a digit that stays does. If not `whole`, spans that overlap are enough: other programs
    draw the ends of a span elsewhere.
    """
    result = Score()
    for (text, spans), hits in zip(texts, found, strict=True):
        there, masked = {_core(text, span) for span in spans}, {_core(text, span) for span in hits}
        covered = {place for first, last, _ in masked for place in range(first, last)}
        for span in there:
            first, last, kind = span
            if span in masked or (not whole and any(_overlap(span, other) for other in masked)):
                result.counts[kind].right += 1
                continue
            result.counts[kind].missed += 1
            result.leaked += any(text[place].isalnum() for place in range(first, last) if place not in covered)
            result.errors.append(f"missed {kind} {text[first:last]!r} in {text!r}")
        for span in masked:
            first, last, kind = span
            if span not in there and (whole or not any(_overlap(span, other) for other in there)):
                result.counts[kind].wrong += 1
                result.errors.append(f"wrong {kind} {text[first:last]!r} in {text!r}")
    return result


def _overlap(one: tuple[int, int, str], other: tuple[int, int, str]) -> bool:
    return one[2] == other[2] and one[0] < other[1] and other[0] < one[1]


def _core(text: str, span: Span) -> tuple[int, int, str]:
    places = [place for place in range(span.start, span.end) if text[place].isalnum()]
    return (places[0], places[-1] + 1, span.kind) if places else (span.start, span.end, span.kind)


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's score interval)."""
    if total == 0:
        return 0.0, 1.0
    share = right / total
    middle = share + _Z**2 / (2 * total)
    half = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    scale = 1 + _Z**2 / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
