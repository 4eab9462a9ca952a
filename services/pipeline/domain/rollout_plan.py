"""How a new version is brought to its users: the steps of a roll-out, and what ends each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

DAY_MINUTES = 24 * 60.0
WEEK_MINUTES = 7 * DAY_MINUTES
CANARY_SHARES = (0.01, 0.05, 0.25)


class StepKind(Enum):
    """What the new version does in a step."""

    SHADOW = "shadow"
    """It answers copies of calls."""
    CANARY = "canary"
    """It answers a share of the users."""
    AB = "ab"
    """It is compared with the serving version."""


class Metric(Enum):
    """What the versions are compared by: a mean of each user's mean."""

    ACCEPTED = "accepted"
    """1 for a judged answer that was accepted, 0 for another one."""
    RATING = "rating"
    """From -1 to 1."""
    LATENCY = "latency"
    """Milliseconds; less is better."""
    JUDGED = "judged"
    """Rating by a judge, from -1 to 1."""


@dataclass(frozen=True, slots=True)
class StepLength:
    """When a step has seen enough, and when it has waited too long."""

    min_minutes: float = 10.0
    min_answers: int = 200
    """Of the new version."""
    max_minutes: float = WEEK_MINUTES


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step; `share` is the new version's share of the users, 0 in the shadow."""

    kind: StepKind
    share: float = 0.0
    length: StepLength = StepLength()


@dataclass(frozen=True, slots=True)
class Comparison:
    """What decides about the promotion."""

    metric: Metric = Metric.ACCEPTED
    margin: float = 0.0
    """By how much the new version may be worse; at 0 it must be better."""
    alpha: float = 0.05
    """Chance of promoting a version that is worse than the margin allows, over the whole test."""
    judge: str = ""
    """Whose ratings count, for JUDGED."""
    max_users: int = 0
    """Users of both versions together who have judged, at which it ends. It is then looked at a few planned times only;
    at 0 it has no such end, and may be looked at any time."""


@dataclass(frozen=True, slots=True)
class GuardRails:
    """Limits that end a roll-out at any step; 0 means that there is no such limit."""

    max_error_rate: float = 0.05
    max_refusal_rate: float = 0.05
    max_latency_ratio: float = 2.0
    """Of the 99th percentiles, the new version's to the serving one's."""
    max_latency_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """All steps in order, and what is decided by."""

    steps: tuple[PlannedStep, ...]
    comparison: Comparison = Comparison()
    guard_rails: GuardRails = GuardRails()
    approve_first: bool = False
