"""Enforces the limits of each key, over all processes of a gateway.

A rate is a token bucket that holds one second's requests; refusals say when the next request is allowed. Tokens are
counted when they were used: calls under way when the day's tokens end are answered.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime

from gateway.keys.key import ApiKey
from gateway.keys.usage import UsageTable
from services.kit.errors import ResourceExhaustedError

DAY_S = 86400
# Weight of the last request in the mean duration.
_SMOOTHING = 0.2


class KeyLimiter:
    """The limits of all keys."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        table: UsageTable | None = None,
        calendar: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        clock: seconds that only go forward, the same in all processes.
        table: what the keys use now; of this process alone when None.
        calendar: seconds since 1970.
        """
        self._clock, self._calendar = clock, calendar
        self._table = table or UsageTable()

    def enter(self, key: ApiKey) -> Callable[[], None]:
        """Counts a request that begins.

        Returns:
            What must be called when it has ended.

        Raises:
            ResourceExhaustedError: the key is at one of its limits; `retry_after_s` says when to come again.
        """
        limits = key.limits
        if limits.requests_per_s is None and limits.concurrent is None:
            return _nothing
        now, key_id = self._clock(), key.key_id
        with self._table.of(key_id) as use:
            if limits.concurrent is not None and use.concurrent >= limits.concurrent:
                # One of them ends, on average, after a share of what they last.
                wait = max(0.05, use.mean_s / limits.concurrent)
                raise _exhausted("CONCURRENT_REQUESTS", f"{limits.concurrent} requests at once", wait)
            if limits.requests_per_s is not None:
                rate, most = limits.requests_per_s, max(1.0, limits.requests_per_s)
                # A clock that stands before the last request is that of a machine that was started again.
                passed = now - use.filled_at if use.filled_at <= now else math.inf
                tokens = min(most, use.tokens + passed * rate)
                use.filled_at = now
                use.tokens = tokens if tokens < 1.0 else tokens - 1.0
                if tokens < 1.0:
                    raise _exhausted("REQUEST_RATE", f"{rate:g} requests per second", (1.0 - tokens) / rate)
            use.add_concurrent(1)

        def leave() -> None:
            with self._table.of(key_id) as use:
                use.add_concurrent(-1)
                use.mean_s += _SMOOTHING * (self._clock() - now - use.mean_s)

        return leave

    def meter(self, key: ApiKey) -> Callable[[int], None] | None:
        """Admits a call that uses tokens.

        Returns:
            What is to be called with tokens that were used; None if they need not be counted.

        Raises:
            ResourceExhaustedError: the day's tokens are used up; `retry_after_s` says when the next day begins.
        """
        most, key_id = key.limits.tokens_per_day, key.key_id
        if most is None:
            return None
        now = self._calendar()
        day = int(now // DAY_S)
        with self._table.of(key_id) as use:
            spent = use.spent(day)
        if spent >= most:
            end = (day + 1) * DAY_S
            raise ResourceExhaustedError(
                f"This API key is limited to {most:,} tokens a day and has used {spent:,}; the next day begins at "
                f"{datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M} UTC.",
                reason="TOKENS_PER_DAY",
                metadata={"limit": str(most), "used": str(spent)},
                retry_after_s=end - now,
            )

        def spend(tokens: int) -> None:
            with self._table.of(key_id) as use:
                use.spend(int(self._calendar() // DAY_S), tokens)

        return spend


def _nothing() -> None:
    """Ends a request of a key without limits."""


def _exhausted(reason: str, limit: str, wait_s: float) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"This API key is limited to {limit}; retry in {wait_s:.2f} s.", reason=reason, retry_after_s=wait_s
    )
