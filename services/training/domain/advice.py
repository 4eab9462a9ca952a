"""Which recipe and build suit a device and its limits: the rules, without a model or a machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from services.kit.errors import FieldViolation, InvalidArgumentError
from services.training.domain.device import DEVICES, HERE, Device
from services.training.domain.tasks import TASKS, Architecture, VariantName

Goal = Literal["balanced", "accuracy", "real_time", "offline", "concurrency", "small"]
GOALS: tuple[Goal, ...] = ("balanced", "accuracy", "real_time", "offline", "concurrency", "small")
Preference = Literal["fastest", "smallest", "best_quality"]
MAX_QUALITY_LOSS: Mapping[Architecture, float] = {"encoder": 0.02, "causal": 0.05}
"""The gate where no limit is named: that of the pipelines that come with the product."""
EXPECTED_LOSS: Mapping[tuple[Architecture, VariantName], float] = {
    ("encoder", "fp32"): 0.0,
    ("encoder", "int8"): 0.005,
    ("causal", "fp32"): 0.0,
    ("causal", "int8"): 0.008,
    ("causal", "int4"): 0.1,
}
"""Relative loss of quality of a build where no run has measured it: of the examples in README.md and docs/LOG.md."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to be served, and the limits; a limit of zero is none.

    `max_latency_ms` is the 95th percentile of a whole answer to the longest input, for one caller. `max_quality_loss`
    is relative to the fine-tuned model in fp32; the gate's when None. `callers` ask at the same time.
    """

    task: str
    device: str = HERE
    goal: Goal | Literal[""] = ""
    base_models: tuple[str, ...] = ()
    max_input_tokens: int = 128
    max_target_tokens: int = 32
    max_size_bytes: int = 0
    max_latency_ms: float = 0.0
    max_memory_bytes: int = 0
    max_quality_loss: float | None = None
    callers: int = 1

    def __post_init__(self) -> None:
        found = [
            FieldViolation(name, f"{value!r} is not one of {', '.join(known)}")
            for name, value, known in (
                ("task", self.task, tuple(TASKS)),
                ("device", self.device, (HERE, *DEVICES)),
                ("goal", self.goal or GOALS[0], GOALS),
            )
            if value not in known
        ]
        limits = ("max_size_bytes", "max_latency_ms", "max_memory_bytes")
        found += [FieldViolation(name, "must not be negative") for name in limits if getattr(self, name) < 0]
        if self.max_quality_loss is not None and not 0 <= self.max_quality_loss <= 1:
            found.append(FieldViolation("max_quality_loss", "must be between 0 and 1"))
        if found:
            text = "; ".join(f"{each.field}: {each.description}" for each in found)
            raise InvalidArgumentError(f"{text}.", reason="INVALID_WISHES", violations=found)

    @property
    def architecture(self) -> Architecture:
        """The kind of base model that the task needs."""
        return TASKS[self.task].ARCHITECTURE

    @property
    def quality_limit(self) -> float:
        """The largest loss of quality; none is allowed beyond the gate's own."""
        return MAX_QUALITY_LOSS[self.architecture] if self.max_quality_loss is None else self.max_quality_loss

    def goal_on(self, device: Device) -> Goal:
        """The goal, or what suits the device where none is named."""
        return self.goal or ("concurrency" if self.callers > 1 else "small" if device.small else "balanced")


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a build will need and give; `latency_ms` as the limit, `per_second` texts or tokens for one caller."""

    size_bytes: float
    memory_bytes: float
    latency_ms: float
    per_second: float
    quality_loss: float


@dataclass(frozen=True, slots=True)
class Miss:
    """A limit that a build exceeds, by the name of its field in `Wishes`."""

    limit: str
    wanted: float
    found: float

    @property
    def ratio(self) -> float:
        """How far it is exceeded."""
        return self.found / self.wanted if self.wanted else float("inf")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A build of a base model, its prediction, and which limits it exceeds.

    `measured_runs` is the number of runs that its loss of quality comes from; zero if it is the expected one.
    """

    base_model: str
    parameters: int
    build: VariantName
    predicted: Predicted
    measured_runs: int = 0
    misses: tuple[Miss, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it exceeds no limit."""
        return not self.misses


def misses(wishes: Wishes, device: Device, found: Predicted) -> tuple[Miss, ...]:
    """The limits that a prediction exceeds; the memory of the device is one where none is named."""
    limits = (
        ("max_size_bytes", float(wishes.max_size_bytes), found.size_bytes),
        ("max_latency_ms", wishes.max_latency_ms, found.latency_ms),
        ("max_memory_bytes", float(wishes.max_memory_bytes or device.memory_bytes), found.memory_bytes),
    )
    over = [Miss(name, wanted, value) for name, wanted, value in limits if wanted and value > wanted]
    if found.quality_loss > wishes.quality_limit:
        over.append(Miss("max_quality_loss", wishes.quality_limit, found.quality_loss))
    return tuple(over)


_Key = Callable[[Candidate], tuple[float, ...]]
_RANKS: Mapping[Goal, tuple[_Key, str, Preference]] = {
    "accuracy": (
        lambda c: (-c.parameters, c.predicted.quality_loss, c.predicted.latency_ms),
        "the largest base model, in the build that loses least",
        "best_quality",
    ),
    "offline": (
        lambda c: (-c.parameters, c.predicted.quality_loss, -c.predicted.per_second),
        "no one waits, so the largest base model, in the build that loses least",
        "best_quality",
    ),
    "real_time": (lambda c: (c.predicted.latency_ms, c.predicted.size_bytes), "the fastest answer", "fastest"),
    "concurrency": (
        lambda c: (c.predicted.latency_ms, c.predicted.memory_bytes),
        "the most answers a second",
        "fastest",
    ),
    "small": (lambda c: (c.predicted.size_bytes, c.predicted.latency_ms), "the smallest file", "smallest"),
    "balanced": (
        lambda c: (-c.parameters, c.predicted.latency_ms, c.predicted.size_bytes),
        "the largest base model, in its fastest build",
        "fastest",
    ),
}


def ranked(goal: Goal, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that fit first, each group best first; of those that do not, the nearest first."""
    key = _RANKS[goal][0]
    fitting = sorted((each for each in candidates if each.fits), key=key)
    others = [each for each in candidates if not each.fits]
    return fitting + sorted(others, key=lambda c: (len(c.misses), max(miss.ratio for miss in c.misses), *key(c)))


def reason_of(goal: Goal, fitting: int) -> str:
    """Why the first of the ranked ones is picked."""
    words = _RANKS[goal][1]
    return f"{words} of the {fitting} that fit" if fitting > 1 else "the only one that fits"


def preference_of(goal: Goal) -> Preference:
    """What a roll-out prefers among the builds that pass the gate."""
    return _RANKS[goal][2]
