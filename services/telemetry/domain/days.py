"""One index per day and signal, named by the event's own day in UTC, and the number of days that are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from functools import lru_cache

_PREFIX = "tidemill"
_NAME = re.compile(rf"{_PREFIX}-(?:logs|traces)-(\d{{4}})\.(\d{{2}})\.(\d{{2}})")
_DAY_NS = 86_400 * 10**9
_EPOCH = date(1970, 1, 1)


class Signal(Enum):
    """The kind of an event."""

    LOGS = "logs"
    TRACES = "traces"

    @property
    def pattern(self) -> str:
        """Index pattern that matches all days."""
        return f"{_PREFIX}-{self.value}-*"

    def index(self, time_ns: int) -> str:
        """Name of the index that an event of this time (nanoseconds since 1970) belongs to."""
        return _index(self, time_ns // _DAY_NS)


@lru_cache(maxsize=256)
def _index(signal: Signal, day: int) -> str:
    return f"{_PREFIX}-{signal.value}-{_EPOCH + timedelta(days=day):%Y.%m.%d}"


def day_of(index: str) -> date | None:
    """The day in an index's name; None if the name is not one of `Signal.index`."""
    found = _NAME.fullmatch(index)
    if not found:
        return None
    try:
        return date(*(int(part) for part in found.groups()))
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def timestamp(time_ns: int) -> str:
    """ISO 8601 in UTC with nanoseconds, as `2026-11-24T03:00:00.123456789Z`."""
    seconds, rest = divmod(time_ns, 10**9)
    return f"{_second(seconds)}.{rest:09d}Z"


def nanoseconds(text: str) -> int:
    """The inverse of `timestamp`.

    Raises:
        ValueError: the text is not valid.
    """
    seconds, _, rest = text.removesuffix("Z").partition(".")
    moment = datetime.strptime(seconds, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return int(moment.timestamp()) * 10**9 + int(rest.ljust(9, "0") or 0)


@dataclass(frozen=True, slots=True)
class Retention:
    """The number of days that are kept, including today.

    It also limits which events are accepted: a sender whose clock is wrong must not create an index for a distant day.
    """

    days: int

    def is_over(self, day: date, today: date) -> bool:
        """Whether a day's index may be deleted."""
        return day <= today - timedelta(days=self.days)

    def objection(self, time_ns: int, now_ns: int) -> str:
        """Why an event of this time is refused; empty if it is accepted."""
        today = now_ns // _DAY_NS
        day = time_ns // _DAY_NS
        if day <= today - self.days:
            return f"its time is more than {self.days} days ago, which is longer than events are kept"
        if day > today + 1:
            return "its time is more than a day in the future"
        return ""
