"""A training run and its states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from services.kit.failure import Failure
from services.training.domain.report import Report
from services.training.domain.training_spec import TrainingSpec


class RunState(Enum):
    """Where a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self not in (RunState.QUEUED, RunState.RUNNING)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is; `remaining_s` is of the phase, `time` in seconds since 1970."""

    phase: str
    done: int = 0
    total: int = 0
    unit: str = ""
    rate: float = 0.0
    remaining_s: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """A run; `digest` is the identity of its outcome, `attempts` how often its worker was started.

    `attempts` leaves out the starts that ended because the service itself was stopped. `warnings` tell what a
    succeeded run lacks or did otherwise than asked, for a person.
    """

    name: str
    spec: TrainingSpec
    digest: str
    uri: str
    create_time: datetime
    update_time: datetime
    state: RunState = RunState.QUEUED
    progress: Progress | None = None
    report: Report | None = None
    failure: Failure | None = None
    reused: bool = False
    model_version: str = ""
    request_id: str = ""
    traceparent: str = ""
    cancel_requested: bool = False
    attempts: int = 0
    announced: bool = False
    warnings: tuple[str, ...] = ()
