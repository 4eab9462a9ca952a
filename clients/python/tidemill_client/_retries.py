"""Whether and when a failed call is tried again."""

from __future__ import annotations

import random
import threading
import time

from tidemill_client.errors import TidemillError

_CODES = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
_FIRST_S, _LONGEST_S = 0.2, 5.0


class Budget:
    """What a client may spend on retries: a retry costs 1, a success returns a tenth.

    With less than half left there are no retries, so that a struggling mesh is not asked several times for everything
    (the rule of gRPC's own throttling, gRFC A6).
    """

    def __init__(self, limit: float) -> None:
        """`limit`: what is left at first, and at most; 0 allows no retries."""
        self._lock = threading.Lock()
        self._limit = self._left = limit

    def succeeded(self) -> None:
        """A call went well."""
        with self._lock:
            self._left = min(self._limit, self._left + 0.1)

    def take(self) -> bool:
        """Whether one more retry is allowed; takes it from the budget."""
        with self._lock:
            if self._left <= self._limit / 2:
                return False
            self._left -= 1
            return True


class Attempts:
    """The attempts of one call, all within its timeout."""

    def __init__(self, timeout: float, budget: Budget) -> None:
        """`timeout` in seconds."""
        self._end = time.monotonic() + timeout
        self._budget = budget
        self._failures = 0

    @property
    def left(self) -> float:
        """Seconds until the call must have ended."""
        return max(0.001, self._end - time.monotonic())

    def pause(self, error: TidemillError) -> float:
        """Seconds to wait before the next attempt: what the mesh named, else growing and random.

        Raises:
            TidemillError: `error`, where another attempt cannot help, has no time left or is not in the budget.
        """
        if error.code not in _CODES:
            raise error
        self._failures += 1
        pause = error.retry_after
        if pause is None:
            pause = random.uniform(0.5, 1.0) * min(_LONGEST_S, _FIRST_S * 2**self._failures)  # noqa: S311
        if pause >= self.left or not self._budget.take():
            raise error
        return pause

    def succeeded(self) -> None:
        """The call went well."""
        self._budget.succeeded()
