"""Faults after which a process must not continue, from wherever they are met to whatever ends the process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.kit.errors import TidemillError

Listener = Callable[[TidemillError], object]


class FatalFaults:
    """Reports the first fault of a process; without a listener, such as in a tool, a fault is an error like others.

    A damaged database is met by a statement, and any loop or handler may take the error for that of the item at hand,
    and continue with the next item for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []

    def report(self, fault: TidemillError) -> None:
        """Calls the listeners; may be called from any thread."""
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(fault)

    @contextmanager
    def heard_by(self, listener: Listener) -> Iterator[None]:
        """Calls a listener with each fault during the block, in the thread that met it."""
        with self._lock:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)


FATAL = FatalFaults()
"""Of this process."""
