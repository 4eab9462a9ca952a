"""Feedback on answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Feedback:
    """A judgement of one answer; rating from -1 (bad) to 1 (good).

    `model_version` is empty until the prediction behind the answer is known.
    """

    feedback_id: str
    answer: str
    rating: float
    correction: str
    author: str
    create_time: datetime
    model_version: str = ""
    request_id: str = ""
    traceparent: str = ""

    @property
    def name(self) -> str:
        """`feedback/{feedback}`."""
        return f"feedback/{self.feedback_id}"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that a model gave."""

    name: str
    model_version: str
    answer_time: datetime
