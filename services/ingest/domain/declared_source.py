"""Declared sources: what the mesh collects by itself, when, and the orders to do so."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from services.ingest.domain.record import FEEDBACK_SOURCES
from services.ingest.domain.source_import import Import, PushedSource, SourcePolicy, SourceSpec, check_spec
from services.kit.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError
from services.kit.failure import Failure
from services.kit.schedules import check_schedule, due_after, zone_of

BY_SCHEDULE = "schedule"
"""Actor of a collection that no one ordered."""


@dataclass(frozen=True, slots=True)
class Timetable:
    """When a source is collected: every some minutes, or at the times of a cron expression in a time zone."""

    every_minutes: float = 0.0
    schedule: str = ""
    time_zone: str = "UTC"

    def check(self, field: str) -> None:
        """Refuses what is never due.

        Raises:
            InvalidArgumentError: names the field, which is below `field`.
        """
        zone_of(self.time_zone, f"{field}.time_zone")
        if self.schedule:
            check_schedule(self.schedule, f"{field}.schedule")

    def next_after(self, moment: datetime) -> datetime | None:
        """The next time that is due, in UTC; None for a schedule that ends."""
        if self.schedule:
            return due_after(self.schedule, moment, zone_of(self.time_zone))
        return moment + timedelta(minutes=self.every_minutes)


@dataclass(frozen=True, slots=True)
class DeclaredSource:
    """A source that is declared; `due_time` is None if it is collected by hand only.

    `pipelines` are the names of those whose files declare it, the first one first; none if it was put by itself.
    """

    spec: SourceSpec
    create_time: datetime
    update_time: datetime
    timetable: Timetable | None = None
    pipelines: tuple[str, ...] = ()
    paused: bool = False
    pause_reason: str = ""
    due_time: datetime | None = None

    @property
    def name(self) -> str:
        """`sources/{source}`."""
        return f"sources/{self.spec.source}"

    @property
    def pushed(self) -> bool:
        """Whether others push its records."""
        return isinstance(self.spec.kind, PushedSource)

    def same_as(self, other: DeclaredSource) -> bool:
        """Whether the other one is declared in the same way."""
        return (self.spec, self.timetable) == (other.spec, other.timetable)


@dataclass(frozen=True, slots=True)
class Collection:
    """An order to collect a source; pending until an import answers it or a failure says why none can.

    `order_id` is the request id that creates the import: a repeat after a crash is the same import.
    """

    order_id: str
    spec: SourceSpec
    order_time: datetime
    actor: str = BY_SCHEDULE
    import_name: str = ""
    reused: bool = False
    failure: Failure | None = None

    @property
    def pending(self) -> bool:
        """Whether it is still to be carried out."""
        return not self.import_name and self.failure is None


@dataclass(frozen=True, slots=True)
class SourceView:
    """A source, the newest import of its origin, and its newest collections, the last one first."""

    source: DeclaredSource
    last_import: Import | None
    collections: tuple[Collection, ...]


def check_source(spec: SourceSpec, timetable: Timetable | None, place: str = "spec") -> None:
    """Checks a declaration as far as possible without accessing the source.

    Raises:
        InvalidArgumentError: names each field that is wrong, below `place`.
    """
    if spec.source.startswith(FEEDBACK_SOURCES):
        what = f"must not begin with {FEEDBACK_SOURCES!r}, which stands for feedback"
        raise InvalidArgumentError(
            f"{place}.source {what}.", reason="INVALID_SOURCE", violations=[FieldViolation(f"{place}.source", what)]
        )
    try:
        check_spec(spec)
    except InvalidArgumentError as error:
        found = [FieldViolation(place + v.field.removeprefix("spec"), v.description) for v in error.violations]
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in found)
        raise InvalidArgumentError(text, reason=error.reason, violations=found) from error
    if timetable is not None:
        timetable.check(f"{place}.collect")


def governed(spec: SourceSpec, source: DeclaredSource | None) -> SourceSpec:
    """The spec of an import under the policy of the declared source of its name, so that no import evades that.

    Raises:
        FailedPreconditionError: both have a policy, and not the same.
    """
    if source is None or source.spec.policy in (SourcePolicy(), spec.policy):
        return spec
    if spec.policy != SourcePolicy():
        raise FailedPreconditionError(
            f"{source.name} is declared with another policy than this import has. Give both the same: "
            f"`tidemill sources put FILE` declares it again.",
            reason="POLICY_DIFFERS",
            metadata={"source": source.name},
        )
    return replace(spec, policy=source.spec.policy)


def nothing_to_pull(source: DeclaredSource) -> FailedPreconditionError:
    """The refusal to collect or pause a source whose records others push."""
    return FailedPreconditionError(
        f"Others push the records of {source.name}: there is nothing to collect or to pause.",
        reason="PUSHED_SOURCE",
        metadata={"source": source.name},
    )


def source_paused(source: DeclaredSource) -> FailedPreconditionError:
    """The refusal to pull from a paused source."""
    name, why = source.name, f": {source.pause_reason.rstrip('.')}" if source.pause_reason else ""
    return FailedPreconditionError(
        f"{name} is paused{why}. `tidemill sources resume {source.spec.source}` ends the pause.",
        reason="SOURCE_PAUSED",
        metadata={"source": name},
    )
