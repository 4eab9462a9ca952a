"""The order in which one process accepts records."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from services.kit.clock import Clock

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ArrivalStamps:
    """Microseconds since 1970, strictly increasing even if the clock is set back. Thread-safe.

    Between two processes, or across a restart, the order is as good as their clocks agree.
    """

    def __init__(self, clock: Clock, after: datetime | None = None) -> None:
        """`after`: all stamps are later than this time."""
        self._clock = clock
        self._lock = threading.Lock()
        self._last = _micros(after) if after is not None else 0

    def take(self, count: int) -> range:
        """`count` stamps, greater than all earlier ones."""
        now = _micros(self._clock.now())
        with self._lock:
            first = max(now, self._last + 1)
            self._last = first + count - 1
            return range(first, first + count)


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
