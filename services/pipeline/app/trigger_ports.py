"""What the triggers need from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from services.pipeline.domain.audit import AuditEntry
from services.pipeline.domain.cycle import Cycle, PipelineSpec
from services.pipeline.domain.triggers import Alert


@dataclass(frozen=True, slots=True)
class Trigger:
    """The triggers of a pipeline, as stored.

    `scheduled_until` is the time up to which the schedule has been evaluated. `cursors` are, by the name of a cycle,
    the arrival of the newest record when its data set was built. `met_since` is when a count was first found at its
    threshold.
    """

    spec: PipelineSpec
    scheduled_until: datetime
    paused: bool = False
    pause_reason: str = ""
    met_since: datetime | None = None
    cursors: Mapping[str, int] = field(default_factory=dict)

    @property
    def pipeline(self) -> str:
        """The pipeline's name."""
        return self.spec.name


@dataclass(frozen=True, slots=True)
class Firing:
    """A cycle that triggers started; `cycle` is empty until it is known to exist, or where `error` says why it cannot.

    `request_id` makes the order to start it idempotent: a repeat after a crash is the same cycle.
    """

    pipeline: str
    request_id: str
    fire_time: datetime
    reasons: tuple[str, ...]
    spec: PipelineSpec
    cycle: str = ""
    error: str = ""


class TriggerStore(Protocol):
    """Keeps triggers and what they started; each call is one transaction."""

    def put(self, spec: PipelineSpec, now: datetime) -> Trigger | None:
        """Sets the triggers of a pipeline; without triggers in the spec they end. A pause stays.

        A new or changed schedule counts from now on.
        """
        ...

    def get(self, pipeline: str) -> Trigger | None:
        """The triggers of a pipeline."""
        ...

    def page(self, after: str, limit: int) -> Sequence[Trigger]:
        """Triggers by the name of the pipeline, beginning after one."""
        ...

    def pause(self, pipeline: str, paused: bool, reason: str, by: AuditEntry) -> None:
        """Pauses or resumes, with its audit entry; changes nothing in that state or without triggers."""
        ...

    def note(self, pipeline: str, met_since: datetime | None, cursors: Mapping[str, int]) -> None:
        """Keeps what an evaluation has found."""
        ...

    def fire(self, firing: Firing, scheduled_until: datetime) -> bool:
        """Stores the order to start a cycle with its audit entry, and what it answers.

        Returns:
            False if the triggers have ended or are paused.
        """
        ...

    def report(self, pipeline: str, alert: Alert, now: datetime) -> None:
        """Keeps the newest firing of an alert; what is older, or a repeat, changes nothing but that it is resolved."""
        ...

    def alerts(self, pipeline: str, since: datetime | None) -> Sequence[Alert]:
        """Alerts about a pipeline; those that were first reported before a moment are answered."""
        ...

    def pending(self) -> Sequence[Firing]:
        """Orders whose cycle is not known yet, oldest first."""
        ...

    def started(self, firing: Firing, cycle: str, now: datetime) -> None:
        """Records which cycle an order started, with an audit entry; a repeat changes nothing."""
        ...

    def refused(self, firing: Firing, error: str, now: datetime) -> None:
        """Records why an order can never be carried out, with an audit entry; a repeat changes nothing."""
        ...

    def firings(self, pipeline: str, limit: int) -> Sequence[Firing]:
        """What was started of a pipeline, newest first."""
        ...


class RecordCounts(Protocol):
    """The records that cleaning has."""

    async def count(self, sources: Sequence[str], after: int, tenants: Sequence[str]) -> tuple[int, int]:
        """Records of sources that arrived after a moment, and when the newest of them all did.

        Raises:
            UnavailableError: cleaning does not answer.
        """
        ...


class BudgetGauges(Protocol):
    """Shows budgets to whoever scrapes metrics."""

    def show(self, pipeline: str, budget: str, share: float) -> None:
        """How much of a budget is used: `cycles` or `train_minutes`; 1 and more is all of it."""
        ...


class StartCycle(Protocol):
    """Starts a cycle."""

    async def __call__(self, spec: PipelineSpec, request_id: str, reasons: tuple[str, ...]) -> Cycle:
        """The cycle, or the one that the same request started; errors are those of `Cycles.create`."""
        ...
