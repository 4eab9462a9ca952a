"""Who is next: callers take turns, so that one who asks much does not make the others wait, and work in the background
waits for all others.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

# Names as in services.serving.adapters.triton_tensors, which this package cannot import.
CALLER, BACKGROUND = "tidemill_caller", "tidemill_background"


@dataclass(frozen=True, slots=True)
class CallerPriority:
    """Whose request it is, and whether someone waits for it."""

    caller: str = ""
    background: bool = False

    @classmethod
    def of(cls, parameters: str) -> CallerPriority:
        """From a request's parameters as Triton gives them, JSON."""
        found = json.loads(parameters or "{}")
        return cls(str(found.get(CALLER, "")), bool(found.get(BACKGROUND, False)))


class Waiting(Protocol):
    """Something that waits."""

    @property
    def turn(self) -> CallerPriority:
        """Caller and priority."""
        ...


W = TypeVar("W", bound=Waiting)


class TurnQueue(Generic[W]):
    """A queue in which callers take turns; background requests come last, and take turns too. Not thread-safe."""

    def __init__(self) -> None:
        # By caller, whose turn it is first: a caller that was served goes to the end.
        self._online: dict[str, deque[W]] = {}
        self._background: dict[str, deque[W]] = {}

    def __len__(self) -> int:
        return sum(len(each) for lane in (self._online, self._background) for each in lane.values())

    def push(self, work: W) -> None:
        """Adds at the end of its caller's."""
        lane = self._background if work.turn.background else self._online
        lane.setdefault(work.turn.caller, deque()).append(work)

    def first(self) -> W | None:
        """What is next; it stays."""
        lane = self._online or self._background
        return next(iter(lane.values()))[0] if lane else None

    def pop(self) -> W:
        """Takes out what is next.

        Raises:
            IndexError: it is empty.
        """
        lane = self._online or self._background
        if not lane:
            raise IndexError("nothing waits")
        caller = next(iter(lane))
        mine = lane.pop(caller)
        work = mine.popleft()
        if mine:
            lane[caller] = mine
        return work

    def take(self, wanted: Callable[[W], bool]) -> list[W]:
        """Takes out all that is wanted, of everyone."""
        found: list[W] = []
        for lane in (self._online, self._background):
            for caller, mine in list(lane.items()):
                found += [work for work in mine if wanted(work)]
                left = deque(work for work in mine if not wanted(work))
                if left:
                    lane[caller] = left
                else:
                    del lane[caller]
        return found

    def give_way(self, turn: CallerPriority) -> W | None:
        """Removes and returns the entry that makes room for a new request; None if the new request is to be refused.

        For a request that someone waits for, that is the newest in the background. Otherwise it is the newest of the
        caller with the most entries, unless the new request's caller would then have more.
        """
        lane = self._background if turn.background else self._online
        least = len(lane.get(turn.caller, ())) + 1
        if self._background and not turn.background:
            lane, least = self._background, 0
        most = max(lane, key=lambda caller: len(lane[caller]), default=None)
        if most is None or len(lane[most]) <= least:
            return None
        work = lane[most].pop()
        if not lane[most]:
            del lane[most]
        return work
