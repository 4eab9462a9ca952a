"""Feedback on answers, and the rules of what may be said of which."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from services.kit.errors import FieldViolation, InvalidArgumentError, PermissionDeniedError
from services.pipeline.domain.capture import CapturedAnswer

# Line breaks and tabs belong to texts, the other control characters (Unicode's Cc) to nothing that a person wrote.
_CONTROL_IN_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TEXTS = ("correction", "comment")
_NAMES = ("author", "label", "episode")


class Signal(Enum):
    """What a person did with an answer, as the product saw it."""

    UNKNOWN = ""
    ACCEPTED = "accepted"
    EDITED = "edited"
    RETRIED = "retried"


@dataclass(frozen=True, slots=True)
class Feedback:
    """A judgement of one answer; rating from -1 (bad) to 1 (good).

    `model_version` is empty until the prediction behind the answer is known. `tenant` and `api_key` are the caller's.
    A draft has neither id nor time.
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
    label: str = ""
    comment: str = ""
    episode: str = ""
    signal: Signal = Signal.UNKNOWN
    tenant: str = ""
    api_key: str = ""

    @property
    def name(self) -> str:
        """`feedback/{feedback}`."""
        return f"feedback/{self.feedback_id}"

    @property
    def said(self) -> tuple[object, ...]:
        """All that its author said: equal in a repeat."""
        return (
            self.answer,
            self.rating,
            self.correction,
            self.author,
            self.label,
            self.comment,
            self.episode,
            self.signal,
            self.tenant,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that a model gave."""

    name: str
    model_version: str
    answer_time: datetime


def check_texts(item: Feedback, place: str = "") -> None:
    """Refuses control characters: people do not write them, and they would reach training.

    Args:
        item: the judgement.
        place: before the names of fields, for example `judgements[3].`.

    Raises:
        InvalidArgumentError: names the field and the character.
    """
    for names, pattern in ((_TEXTS, _CONTROL_IN_TEXT), (_NAMES, _CONTROL)):
        for name in names:
            if (found := pattern.search(getattr(item, name))) is not None:
                what = f"has the control character U+{ord(found.group()):04X} at {found.start()}; remove it"
                raise InvalidArgumentError(
                    f"{place}{name} {what}",
                    reason="CONTROL_CHARACTER",
                    violations=[FieldViolation(f"{place}{name}", what)],
                )


def check_fits(item: Feedback, answer: CapturedAnswer, place: str = "") -> None:
    """Refuses what cannot be said of an answer.

    Raises:
        InvalidArgumentError: a text corrects a classifier, or a label a model that writes.
        PermissionDeniedError: the answer was given to another tenant.
    """
    if item.tenant != answer.tenant:
        raise PermissionDeniedError(
            f"{item.answer} was given to another tenant; only its own may judge it.",
            reason="ANSWER_OF_ANOTHER_TENANT",
            metadata={"answer": item.answer},
        )
    if answer.is_classification and item.correction:
        what = f"{answer.model} classifies; give the right label as `label`"
        raise InvalidArgumentError(
            f"{place}correction: {what}", reason="NOT_A_TEXT", violations=[FieldViolation(f"{place}correction", what)]
        )
    if item.label and not answer.is_classification:
        what = f"{answer.model} writes; give the right text as `correction`"
        raise InvalidArgumentError(
            f"{place}label: {what}", reason="NOT_A_LABEL", violations=[FieldViolation(f"{place}label", what)]
        )
