"""Feeds OpenVINO's continuous batching: admits answers, steps the engine, passes on what it wrote. One thread.

The engine writes one token of every admitted answer in a step, and reads a bounded part of new prompts. An answer is
admitted when the cache of keys and values has room for the longest that it may become: with a cache that runs full the
engine (2026.4) does not come back from a step. Memory itself is taken only as the cache fills.

Callers take turns. What is in the background starts when no one else waits, and takes half of the places and of the
cache at most, so that whoever comes then finds room.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .engine import QUEUE_FULL
from .turns import CallerPriority, TurnQueue

_LOOK_FOR_CANCELLED_S = 0.1
# This many failed steps in a row are not the fault of one answer.
_BROKEN_AFTER = 3
# Weight of the newest answer in the mean time between two.
_NEWEST = 0.2


class Work(Protocol):
    """An answer while it is written; called from the scheduler's thread only."""

    @property
    def cost(self) -> int:
        """Maximum number of tokens of prompt and answer together."""
        ...

    @property
    def turn(self) -> CallerPriority:
        """Caller and priority."""
        ...

    def start(self, pipeline: Any, number: int) -> Any:
        """Adds itself to the engine under a number of its own; returns the engine's handle."""
        ...

    def take(self, tokens: Sequence[int], logprobs: Sequence[float], ended: bool) -> bool:
        """Takes further tokens, each with its log probability (0 if they were not asked for).

        `ended`: there will be no more. True when the answer is over, and its end was sent.
        """
        ...

    def is_cancelled(self) -> bool:
        """Whether its caller has gone."""
        ...

    def cancel(self) -> None:
        """Sends that it was cancelled."""
        ...

    def fail(self, error: Exception) -> None:
        """Sends the error as its end."""
        ...


class QueueFullError(Exception):
    """The queue is so long that another request would not be answered in time."""


class Scheduler:
    """Works on at most `max_active` at once; others wait, and their callers take turns."""

    def __init__(
        self,
        pipeline: Any,
        *,
        capacity: int,
        max_active: int,
        max_waiting: int,
        on_error: Callable[[str], None],
        on_broken: Callable[[], None],
    ) -> None:
        """Args:
        pipeline: `openvino_genai.ContinuousBatchingPipeline`, for this object alone.
        capacity: tokens that its cache holds.
        max_active: answers that are written side by side.
        max_waiting: answers that wait beside them.
        on_error: receives what could not be sent to a caller.
        on_broken: called when the engine fails step after step: what it is given no longer matters then.
        """
        self._pipeline, self._capacity = pipeline, capacity
        self._max_active, self._max_waiting = max_active, max_waiting
        self._on_error, self._on_broken = on_error, on_broken
        self._failures = 0
        self._waiting: TurnQueue[Work] = TurnQueue()
        self._displaced: list[Work] = []
        self._changed = threading.Condition()
        self._closing = False
        self._number = 0
        self._apart_s = 1.0
        """Mean time between the ends of two answers while others wait."""
        self._ended = time.monotonic()
        self._looked = 0.0
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Takes work.

        Raises:
            QueueFullError: too many wait; it says in how many seconds half of them will be gone, at the present rate.
                Where another caller has more waiting, the last of those gets this error instead.
        """
        with self._changed:
            if len(self._waiting) >= self._max_waiting:
                other = self._waiting.give_way(work.turn)
                if other is None:
                    raise self._full()
                self._displaced.append(other)
            self._waiting.push(work)
            self._changed.notify()

    def _full(self) -> QueueFullError:
        waiting = len(self._waiting)
        return QueueFullError(f"{waiting} {QUEUE_FULL} {max(1, math.ceil(self._apart_s * waiting / 2))} s.")

    def close(self) -> None:
        """Ends when everything taken is done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        active: dict[Any, Work] = {}
        while True:
            with self._changed:
                while not active and not self._waiting and not self._displaced:
                    if self._closing:
                        return
                    self._changed.wait()
                displaced, self._displaced = self._displaced, []
                full = self._full()
            for work in displaced:
                self._fail(work, full)
            self._drop_cancelled(active)
            self._admit(active)
            if not active:
                continue
            try:
                self._pipeline.step()
            except Exception as error:
                for handle, work in active.items():
                    handle.cancel()
                    self._fail(work, error)
                active.clear()
                self._failures += 1
                if self._failures >= _BROKEN_AFTER:
                    self._on_broken()
                continue
            self._failures = 0
            for handle in [handle for handle, work in active.items() if self._hand_on(handle, work)]:
                del active[handle]
                self._note_end()

    def _admit(self, active: dict[Any, Work]) -> None:
        room = self._capacity - sum(work.cost for work in active.values())
        while len(active) < self._max_active:
            with self._changed:
                first = self._waiting.first()
                if first is None or first.cost > room or (first.turn.background and not self._fits(first, active)):
                    return
                work = self._waiting.pop()
            room -= work.cost
            self._number += 1
            try:
                active[work.start(self._pipeline, self._number)] = work
            except Exception as error:
                self._fail(work, error)

    def _fits(self, work: Work, active: dict[Any, Work]) -> bool:
        """Whether work in the background leaves room for others; one answer of it is always written."""
        others = [each.cost for each in active.values() if each.turn.background]
        return not others or (len(others) < self._max_active // 2 and sum(others) + work.cost <= self._capacity // 2)

    def _drop_cancelled(self, active: dict[Any, Work]) -> None:
        """Ends what no one waits for any more; asking Triton costs too much to do it for every token."""
        now = time.monotonic()
        if now - self._looked < _LOOK_FOR_CANCELLED_S:
            return
        self._looked = now
        for handle in [handle for handle, work in active.items() if work.is_cancelled()]:
            handle.cancel()
            self._send_end(active.pop(handle).cancel)
        with self._changed:
            gone = self._waiting.take(lambda work: work.is_cancelled())
        for work in gone:
            self._send_end(work.cancel)

    def _hand_on(self, handle: Any, work: Work) -> bool:
        """Gives an answer its new tokens; True when it is over. One answer's failure must not end the others."""
        try:
            tokens: list[int] = []
            logprobs: list[float] = []
            ended = False
            while handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
                    logprobs += output.generated_log_probs
                    ended = ended or output.finish_reason.name != "NONE"
            ended = ended or handle.get_status().name != "RUNNING"
            if not tokens and not ended:
                return False
            over = work.take(tokens, logprobs, ended)
        except Exception as error:
            self._fail(work, error)
            over, ended = True, False
        if over and not ended:
            # A stop text, or an error: the engine would continue to write.
            handle.cancel()
        return over

    def _note_end(self) -> None:
        now = time.monotonic()
        with self._changed:
            busy = bool(self._waiting)
        if busy:
            self._apart_s += _NEWEST * (now - self._ended - self._apart_s)
        self._ended = now

    def _fail(self, work: Work, error: Exception) -> None:
        self._send_end(lambda: work.fail(error))

    def _send_end(self, end: Callable[[], None]) -> None:
        try:
            end()
        except Exception as error:
            self._on_error(f"the end of an answer could not be sent: {error}")
