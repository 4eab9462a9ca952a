"""Lets several answers grow in parallel: one token of each in turn, in one thread.

ONNX Runtime GenAI's own `Engine` does not run builds whose vocabulary projection is pruned to the last position
(0.18: "invalid dimensions for output: logits"), so each answer has a generator of its own.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol


class Work(Protocol):
    """An answer in the making; called from the scheduler's thread only."""

    def step(self) -> bool:
        """Generates one more token; True at the end, which it has then sent itself."""
        ...

    def fail(self, error: Exception) -> None:
        """Tells that it ended by an error."""
        ...


QUEUE_FULL = "requests wait already."
"""How the text of a QueueFullError ends: of an error in a stream Triton passes on little more than its text."""


class QueueFullError(Exception):
    """So many wait already that another would not be answered in time."""


class Scheduler:
    """Works on at most `max_active` at once; others wait in order of their coming."""

    def __init__(self, max_active: int, max_waiting: int, on_error: Callable[[str], None]) -> None:
        self._max_active = max_active
        self._waiting: queue.Queue[Work] = queue.Queue(max_waiting)
        self._on_error = on_error
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Takes work.

        Raises:
            QueueFullError: too many wait.
        """
        try:
            self._waiting.put_nowait(work)
        except queue.Full as error:
            raise QueueFullError(f"{self._waiting.maxsize} {QUEUE_FULL}") from error

    def close(self) -> None:
        """Ends when everything taken is done."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        active: deque[Work] = deque()
        while not (self._closing.is_set() and not active and self._waiting.empty()):
            self._admit(active)
            if not active:
                continue
            work = active.popleft()
            if not self._step(work):
                active.append(work)

    def _admit(self, active: deque[Work]) -> None:
        while len(active) < self._max_active:
            try:
                active.append(self._waiting.get(block=not active, timeout=0.2))
            except queue.Empty:
                return

    def _step(self, work: Work) -> bool:
        try:
            return work.step()
        except Exception as error:
            # The failure of one answer must not end other answers.
            try:
                work.fail(error)
            except Exception as second:
                self._on_error(f"could not send the failure of an answer ({error}): {second}")
            return True
