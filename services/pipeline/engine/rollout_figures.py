"""What is known of the two versions of a roll-out. Latencies are kept in buckets, so that they can be added."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.pipeline.engine.sequential import Sample

_GROWTH = 1.1
"""From one bucket's upper end to the next one's: a percentile is at most so much too large."""


def bucket_of(latency_ms: float) -> int:
    """The bucket of a latency; that of all latencies up to 1 ms is 0."""
    return max(0, math.ceil(math.log(latency_ms) / math.log(_GROWTH))) if latency_ms > 1 else 0


def upper_end(bucket: int) -> float:
    """Its largest latency in milliseconds."""
    return float(_GROWTH**bucket)


@dataclass(frozen=True, slots=True)
class CallCounts:
    """Calls of a version; `latencies` counts the answered ones by bucket."""

    calls: int = 0
    errors: int = 0
    refusals: int = 0
    latencies: Mapping[int, int] = field(default_factory=dict)

    def __add__(self, other: CallCounts) -> CallCounts:
        """Both together."""
        latencies = dict(self.latencies)
        for bucket, count in other.latencies.items():
            latencies[bucket] = latencies.get(bucket, 0) + count
        return CallCounts(
            self.calls + other.calls, self.errors + other.errors, self.refusals + other.refusals, latencies
        )

    @property
    def answered(self) -> int:
        """Calls with a latency."""
        return sum(self.latencies.values())

    def p99_ms(self) -> float:
        """The 99th percentile of the latency, rounded up to its bucket's end; 0 without answers."""
        left = math.ceil(0.99 * self.answered)
        for bucket in sorted(self.latencies):
            left -= self.latencies[bucket]
            if left <= 0:
                return upper_end(bucket)
        return 0.0

    def slower_than(self, limit_ms: float) -> int:
        """Answers in buckets that begin above a limit."""
        return sum(count for bucket, count in self.latencies.items() if bucket and upper_end(bucket - 1) >= limit_ms)


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """One version: its calls in this step and in all, who got its answers, and the metric, a value for each user."""

    step: CallCounts = CallCounts()
    whole: CallCounts = CallCounts()
    users: int = 0
    judged: Sample = field(default_factory=Sample)


@dataclass(frozen=True, slots=True)
class RolloutFigures:
    """Both versions in the current step."""

    champion: ArmFigures = ArmFigures()
    candidate: ArmFigures = ArmFigures()
    unusable: str = ""
    """Why the metric is not used now, such as a judge that no one has checked; empty if it is."""
