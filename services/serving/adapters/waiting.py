"""The requests that wait for one model: how many, whose, and how fast they end. It reads no clock."""

from __future__ import annotations

from collections import Counter

# Weight of the newest end in the mean time between two.
_NEWEST = 0.2
_UNKNOWN_S = 2.0
_SHORTEST_S = 0.05


class Waiting:
    """Counts requests by caller. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._by_caller: Counter[str] = Counter()
        self._ended = float("-inf")
        self._apart_s = 0.0
        self.count = 0
        """Requests that wait now."""

    def refused_for_s(self, caller: str, limit: int) -> float | None:
        """Whether a request has to come again, and in how many seconds: when half of those that wait will have ended.

        Args:
            caller: whose it is. Where all of `limit` is taken, a caller with less than an equal share is admitted
                still, so that one who asks much keeps no one out; there are never more than twice as many.
            limit: requests that may wait.

        Returns:
            None if it may wait, too.
        """
        callers = len(self._by_caller) + (caller not in self._by_caller)
        if self.count < limit or (self.count < 2 * limit and self._by_caller[caller] < limit // callers):
            return None
        return max(_SHORTEST_S, self._apart_s * self.count / 2) if self._apart_s else _UNKNOWN_S

    def enter(self, caller: str) -> None:
        """A request waits."""
        self._by_caller[caller] += 1
        self.count += 1

    def leave(self, caller: str, began: float, now: float) -> None:
        """A request that began then has ended."""
        self.count -= 1
        self._by_caller[caller] -= 1
        if not self._by_caller[caller]:
            del self._by_caller[caller]
        apart = max(0.0, now - max(self._ended, began))
        self._apart_s += (_NEWEST if self._apart_s else 1.0) * (apart - self._apart_s)
        self._ended = now
