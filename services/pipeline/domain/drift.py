"""Drift: which signals of a model are watched for a change, and what the last look at each found.

A look stores figures only, no text and no words, because it is kept longer than the answers that it compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum


class Signal(Enum):
    """What is watched."""

    INPUT = "input"
    """What is asked, beside the texts that the newest cycle learnt from."""
    ANSWERS = "answers"
    """Labels or lengths of answers, beside the first ones of the version that serves."""
    RATINGS = "ratings"
    """People's ratings, beside the first ones of the version that serves."""


DEFAULT_MIN_ANSWERS = 200
DEFAULT_MIN_RATINGS = 50
DEFAULT_EVERY_HOURS = 24.0
DEFAULT_FALSE_ALARM = 0.05


@dataclass(frozen=True, slots=True)
class DriftRules:
    """Which signals are watched, the minimum sample of each, how often, and the chance of a false alarm in 30 days."""

    signals: tuple[Signal, ...] = tuple(Signal)
    min_answers: int = DEFAULT_MIN_ANSWERS
    min_ratings: int = DEFAULT_MIN_RATINGS
    every_hours: float = DEFAULT_EVERY_HOURS
    false_alarm: float = DEFAULT_FALSE_ALARM

    def least(self, signal: Signal) -> int:
        """The minimum sample size of a signal: answers, or people for ratings."""
        return self.min_ratings if signal is Signal.RATINGS else self.min_answers


@dataclass(frozen=True, slots=True)
class DriftLook:
    """A look at a signal: figures as `services.pipeline.engine.drift.Shift` has them.

    `reference` is the data-set version or the model version that it was compared with, `key` distinguishes it from the
    next one: the data set's digest, or the model version. `unit` says what `before` and `now` are.
    """

    pipeline: str
    signal: Signal
    look_time: datetime
    since: datetime
    reference: str
    key: str
    unit: str
    p_value: float
    level: float
    before: float
    now: float
    reference_count: int
    live_count: int

    @property
    def found(self) -> bool:
        """Whether it is drift."""
        return self.p_value <= self.level


@dataclass(frozen=True, slots=True)
class DriftState:
    """What is known of a signal at one moment.

    `last` is the newest look, `due` whether it demands a cycle, `blocked` why there is no next look (else empty);
    otherwise there is one from `next_time` on with `least` members, of which there are `count`.
    """

    signal: Signal
    last: DriftLook | None = None
    due: bool = False
    blocked: str = ""
    next_time: datetime | None = None
    count: int = 0
    least: int = 0
