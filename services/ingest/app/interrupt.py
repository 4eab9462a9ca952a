"""Interrupts what an import waits for from another thread: on cancellation, disconnect or shutdown."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class InterruptedReadError(Exception):
    """Reading of a source ended because its interrupt was set."""


class Interrupt:
    """Set once, by any thread; a waiting thread registers in `then` how to be woken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._wake: list[Callable[[], object]] = []

    def set(self) -> None:
        """Ends the current wait and every later one."""
        with self._lock:
            self._is_set = True
            for wake in self._wake:
                wake()

    def check(self) -> None:
        """Returns if it is not set.

        Raises:
            InterruptedReadError: it is set.
        """
        if self._is_set:
            raise InterruptedReadError

    @contextmanager
    def then(self, wake: Callable[[], object]) -> Iterator[None]:
        """Calls `wake` if it is set within the block, or was before; never after the block."""
        with self._lock:
            if self._is_set:
                wake()
            self._wake.append(wake)
        try:
            yield
        finally:
            with self._lock:
                self._wake.remove(wake)
