"""How many processes of a service run: a fixed number, or a range within which the load decides.

The rule is that of Kubernetes' HorizontalPodAutoscaler: a load is expressed as the number of processes that would be
right for it, and the number follows the least of them at a rise and the greatest at a fall, over a window of time, so
that a short peak starts nothing and a short lull ends nothing. One process at a time, since each changes the load of
the others.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from infra.stack.addresses import Addresses
from infra.stack.errors import StackError


@dataclass(frozen=True, slots=True)
class ProcessRange:
    """Processes that always run, and processes at most."""

    fewest: int
    most: int

    @classmethod
    def parse(cls, variable: str, text: str, limit: int) -> ProcessRange:
        """Reads `2`, or `1-4`.

        Raises:
            StackError: it is neither, or exceeds the limit; the message names the environment variable.
        """
        first, dash, last = text.partition("-")
        numbers = [int(part) if part.isascii() and part.isdecimal() else 0 for part in (first, last if dash else first)]
        if not 1 <= numbers[0] <= numbers[1] <= limit:
            raise StackError(
                f"{variable} must be a number from 1 to {limit}, or a range of them such as 1-{min(4, limit)}, "
                f"not {text!r}."
            )
        return cls(*numbers)


class Demand(Protocol):
    """Measures a load."""

    def processes(self, addresses: Addresses, pids: Sequence[int]) -> tuple[float, str]:
        """How many processes would be right now, and the figures behind it in words. May block a few seconds.

        Args:
            addresses: of all children.
            pids: of the running processes of the service.

        Raises:
            ProbeError: it is not known.
        """
        ...


@dataclass(frozen=True, slots=True)
class Scaling:
    """A service whose number of processes follows its load."""

    service: str
    children: tuple[str, ...]
    """Names of its processes, in the order in which they are started."""
    fewest: int
    """This many of them are always there."""
    demand: Callable[[], Demand]


@dataclass(frozen=True, slots=True)
class Windows:
    """Seconds between two looks at a load, and for how long it must last."""

    look_s: float = 5.0
    rise_s: float = 10.0
    fall_s: float = 120.0


class ScalingRule:
    """The number of processes that follows from measurements of the load."""

    def __init__(self, fewest: int, most: int, windows: Windows) -> None:
        self._fewest, self._most, self._windows = fewest, most, windows
        self._seen: deque[tuple[float, int]] = deque()

    def target(self, now: float, running: int, wanted: float) -> int:
        """One more than `running`, one less, or as many.

        Args:
            now: seconds of a clock that only goes forward.
            running: processes that run.
            wanted: processes that would be right for the load of this moment.
        """
        self._seen.append((now, math.ceil(wanted)))
        while self._seen[0][0] < now - self._windows.fall_s:
            self._seen.popleft()
        rise = self._over(now, self._windows.rise_s)
        fall = self._over(now, self._windows.fall_s)
        target = running
        if rise and min(rise) > running:
            target = min(running + 1, self._most)
        elif fall and max(fall) < running:
            target = max(running - 1, self._fewest)
        if target != running:
            self._seen.clear()
        return target

    def forget(self) -> None:
        """Begins again: the load was not known for a while."""
        self._seen.clear()

    def _over(self, now: float, seconds: float) -> list[int]:
        """The measurements of the last seconds; none if the first is not as old."""
        # A look comes a little early or late.
        if now - self._seen[0][0] < seconds - self._windows.look_s / 2:
            return []
        return [wanted for at, wanted in self._seen if at >= now - seconds]
