"""Enforces the limits of each key, within one process.

A rate is a token bucket that holds one second's requests; refusals say when the next request is allowed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from gateway.keys.key import ApiKey
from services.kit.errors import ResourceExhaustedError

# Weight of the last request in the mean duration.
_SMOOTHING = 0.2


class _KeyUsage:
    """Current usage of one key."""

    __slots__ = ("concurrent", "filled_at", "mean_s", "tokens")

    def __init__(self, now: float) -> None:
        self.tokens = math.inf
        self.filled_at = now
        self.concurrent = 0
        self.mean_s = 0.0


class KeyLimiter:
    """The limits of all keys."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        clock: seconds that only go forward.
        """
        self._clock = clock
        self._uses: dict[str, _KeyUsage] = {}

    def enter(self, key: ApiKey) -> Callable[[], None]:
        """Counts a request that begins.

        Returns:
            A function to call when the request has ended.

        Raises:
            ResourceExhaustedError: the key is at one of its limits; `retry_after_s` says when to retry.
        """
        limits = key.limits
        if limits.requests_per_s is None and limits.concurrent is None:
            return _nothing
        now = self._clock()
        use = self._uses.get(key.key_id)
        if use is None:
            use = self._uses[key.key_id] = _KeyUsage(now)
        if limits.concurrent is not None and use.concurrent >= limits.concurrent:
            # Of n concurrent requests, one ends on average after a n-th of their mean duration.
            wait = max(0.05, use.mean_s / limits.concurrent)
            raise _exhausted("CONCURRENT_REQUESTS", f"{limits.concurrent} requests at once", wait)
        if limits.requests_per_s is not None:
            rate = limits.requests_per_s
            use.tokens = min(max(1.0, rate), use.tokens + (now - use.filled_at) * rate)
            use.filled_at = now
            if use.tokens < 1.0:
                raise _exhausted("REQUEST_RATE", f"{rate:g} requests per second", (1.0 - use.tokens) / rate)
            use.tokens -= 1.0
        use.concurrent += 1

        def leave() -> None:
            use.concurrent -= 1
            use.mean_s += _SMOOTHING * (self._clock() - now - use.mean_s)

        return leave


def _nothing() -> None:
    """Ends a request of a key without limits."""


def _exhausted(reason: str, limit: str, wait_s: float) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"This API key is limited to {limit}; retry in {wait_s:.2f} s.", reason=reason, retry_after_s=wait_s
    )
