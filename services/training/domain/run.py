"""A training run and its states."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from services.kit.failure import Failure
from services.kit.progress import Progress
from services.training.domain.report import LossPoint, Report
from services.training.domain.training_spec import TrainingSpec


class RunState(Enum):
    """State of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether this is a final state."""
        return self not in (RunState.QUEUED, RunState.RUNNING)


@dataclass(frozen=True, slots=True)
class Run:
    """A run; `digest` identifies its outcome, `attempts` is how often its worker was started.

    `attempts` does not count starts that ended because the service was stopped. `warnings` say, for people, what a
    succeeded run lacks or did otherwise than its spec says. `loss_curve` is that of the training so far.
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
    loss_curve: tuple[LossPoint, ...] = ()
