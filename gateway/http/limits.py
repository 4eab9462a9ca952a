"""What HTTP clients use of their limits: connections, and the memory of current bodies."""

from __future__ import annotations

from collections import Counter

from gateway.limits import HttpLimits
from services.kit.errors import InvalidArgumentError, UnavailableError

# Callers may retry after this time: bodies are read and freed within seconds.
_RETRY_S = 2.0


class ConnectionTable:
    """Counts the open connections, in all and by address."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._by_client: Counter[str] = Counter()
        self._open = 0

    def enter(self, client: str | None) -> str | None:
        """Counts a new connection.

        Returns:
            Why it is refused, in which case it is not counted; None if it is accepted.
        """
        if self._open >= self._limits.connections:
            return "The gateway has reached its limit of connections. Retry later."
        if client is not None and self._by_client[client] >= self._limits.connections_per_client:
            return f"{client} has {self._limits.connections_per_client} connections open; close some first."
        self._open += 1
        if client is not None:
            self._by_client[client] += 1
        return None

    def leave(self, client: str | None) -> None:
        """Forgets a connection that was counted."""
        self._open -= 1
        if client is not None:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]


class BodyBudget:
    """The memory of all current bodies in this process."""

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self.taken = 0
        """Bytes that are reserved now."""

    def lease(self) -> BodyLease:
        """The share of one request, nothing at first."""
        return BodyLease(self)


class BodyLease:
    """One request's share of the budget; call `give_back` when the request has ended."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._taken = 0

    @property
    def limit(self) -> int:
        """The largest body, in bytes."""
        return self._budget.limits.body_bytes

    def hold(self, size: int) -> None:
        """Reserves `size` bytes for the request.

        Raises:
            InvalidArgumentError: `size` is above the limit of a single body (BODY_TOO_LARGE).
            UnavailableError: other requests' bodies use the memory that it needs.
        """
        if size > self.limit:
            raise InvalidArgumentError(f"The body is larger than {self.limit} bytes.", reason="BODY_TOO_LARGE")
        more = size - self._taken
        if more <= 0:
            return
        budget = self._budget
        if budget.taken + more > budget.limits.bodies_bytes:
            raise UnavailableError(
                "The gateway has no memory left for this body. Retry later.",
                reason="BODIES_UNDER_WAY",
                retry_after_s=_RETRY_S,
            )
        budget.taken += more
        self._taken = size

    def give_back(self) -> None:
        """Ends the lease."""
        self._budget.taken -= self._taken
        self._taken = 0
