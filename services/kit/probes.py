"""What a build is asked when it is made, and again where it serves: equal answers show that nothing was lost between.

The texts are ours, not a data set's, so that a build keeps nothing that a person wrote.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIELD = "probes"
"""Of a build's manifest."""
TEXTS = (
    "The train to the coast leaves at nine, and the tickets are sold out.",
    "酒店的房间很干净，早餐也不错，就是离地铁站有点远。",
    "Please send the invoice again: the amount on page two is wrong.",
    "昨天收到的耳机左边没有声音，我想换一个新的。",
    "Researchers in Oslo found that short walks help people remember names.",
    "北京大学的王教授今天上午在上海参加了会议。",
)
_VECTOR = "vector "
_NUMBERS = 32
_MIN_COSINE = 0.95
"""Between an embedding here and there. A build in 8 bits has 0.99 on another processor; another text has less."""
MAX_TOKENS = 8
"""Of a written answer: two engines that differ in the last digit part ways later."""


@dataclass(frozen=True, slots=True)
class Probes:
    """Texts, and what the build answered when it was made: a text, a label, `labels_answer`, `spans_answer` or
    `vector_answer`.
    """

    texts: tuple[str, ...]
    answers: tuple[str, ...]
    max_tokens: int = MAX_TOKENS

    @classmethod
    def of(cls, answers: Iterable[str]) -> Probes:
        """The answers to `TEXTS`."""
        found = tuple(answer.strip() for answer in answers)
        assert len(found) == len(TEXTS)
        return cls(TEXTS, found)

    @classmethod
    def read(cls, manifest: Mapping[str, Any]) -> Probes | None:
        """Those of a build's manifest; None of a build that has none.

        Raises:
            ValueError: they are damaged.
        """
        value = manifest.get(FIELD)
        if value is None:
            return None
        try:
            texts, answers = tuple(map(str, value["texts"])), tuple(map(str, value["answers"]))
            limit = int(value["max_tokens"])
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"its {FIELD} cannot be read: {error!r}") from error
        if not texts or len(texts) != len(answers) or limit < 1:
            raise ValueError(f"its {FIELD} are {len(texts)} texts and {len(answers)} answers")
        return cls(texts, answers, limit)

    def written(self) -> Mapping[str, Any]:
        """As the manifest has them."""
        return {FIELD: {"texts": self.texts, "answers": self.answers, "max_tokens": self.max_tokens}}

    def differences(self, answers: Sequence[str]) -> Sequence[tuple[str, str, str]]:
        """Where these answers are not those that the build gave: the text, the answer, and the build's."""
        asked = zip(self.texts, map(str.strip, answers), self.answers, strict=True)
        return [(text, answer, wanted) for text, answer, wanted in asked if not _is_same(answer, wanted)]


def spans_answer(spans: Iterable[tuple[int, int, str]]) -> str:
    """The parts of a text, start, end and label of each, as an answer that can be compared."""
    return json.dumps([list(span) for span in spans], ensure_ascii=False)


def vector_answer(vector: Sequence[float]) -> str:
    """The beginning of an embedding as an answer that can be compared: by its direction, not digit by digit."""
    return _VECTOR + json.dumps([round(float(value), 4) for value in vector[:_NUMBERS]])


def _is_same(answer: str, wanted: str) -> bool:
    one, other = _numbers(answer), _numbers(wanted)
    if not one or len(one) != len(other):
        return answer == wanted
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) >= _MIN_COSINE * lengths > 0


def _numbers(answer: str) -> list[float]:
    """Of a `vector_answer`; none of another answer."""
    if not answer.startswith(_VECTOR):
        return []
    try:
        return [float(value) for value in json.loads(answer.removeprefix(_VECTOR))]
    except (TypeError, ValueError):
        # A label that begins so.
        return []
