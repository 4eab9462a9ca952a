"""Times of cron expressions, by cronsim: five fields, in a time zone, right also where clocks are changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from services.kit.errors import FieldViolation, InvalidArgumentError

INVALID = "SCHEDULE_INVALID"
"""Reason of a refusal that the caller gives no reason of its own."""
_FIELDS = 5


def zone_of(name: str, field: str = "time_zone", reason: str = INVALID) -> tzinfo:
    """A time zone by its IANA name.

    Raises:
        InvalidArgumentError: there is none; names the field.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise _wrong(reason, field, f"{name!r} is not a time zone; write it as Europe/Berlin or UTC") from error


def check_schedule(schedule: str, field: str = "schedule", reason: str = INVALID) -> None:
    """Refuses what is not a cron expression, or never due.

    Raises:
        InvalidArgumentError: names the field.
    """
    if len(schedule.split()) != _FIELDS:
        raise _wrong(reason, field, f"{schedule!r} is not a cron expression of five fields, such as 0 3 * * MON")
    try:
        CronSim(schedule, datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise _wrong(reason, field, f"{schedule!r} is not a valid cron expression: {error}") from error
    if due_after(schedule, datetime(2026, 1, 1, tzinfo=UTC), UTC) is None:
        raise _wrong(reason, field, f"{schedule!r} is never due")


def due_after(schedule: str, moment: datetime, zone: tzinfo) -> datetime | None:
    """The first time of a schedule after a moment, in UTC; None if there is none in the next decades."""
    found = next(CronSim(schedule, moment.astimezone(zone)), None)
    return None if found is None else found.astimezone(UTC)


def last_due(schedule: str, after: datetime, until: datetime, zone: tzinfo) -> datetime | None:
    """The last time of a schedule after one moment and not after another, in UTC; None if there is none."""
    # Going back leaves out the moment itself, and times of a schedule are whole minutes.
    found = next(CronSim(schedule, (until + timedelta(seconds=1)).astimezone(zone), reverse=True), None)
    last = None if found is None else found.astimezone(UTC)
    return last if last is not None and last > after else None


def _wrong(reason: str, field: str, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field}: {what}.", reason=reason, violations=[FieldViolation(field, what)])
