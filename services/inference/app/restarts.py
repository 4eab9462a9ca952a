"""Versions whose process in the server seems to have died, or that it lacks, in the order in which that was noticed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence


class RestartQueue:
    """What the reconciler is to load again. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: dict[tuple[str, int], None] = {}
        """In the order in which they were added."""
        self._generations: dict[tuple[str, int], int] = {}
        self._wake: Callable[[], object] = lambda: None

    def on_add(self, wake: Callable[[], object]) -> None:
        """Calls `wake` whenever a version is added."""
        self._wake = wake

    def add(self, model: str, number: int, generation: int | None = None) -> bool:
        """Asks for a version to be loaded again; returns whether it will be.

        Args:
            model: its model.
            number: its number.
            generation: of the version in the routes by which the request was sent that showed its process dead. A
                request from before the newest load may have met the process that was replaced, so it asks for nothing.
                None for what needs no such proof.
        """
        with self._lock:
            if generation is not None and generation < self._generations.get((model, number), 0):
                return False
            self._versions.setdefault((model, number))
        self._wake()
        return True

    def put_back(self, model: str, numbers: Iterable[int]) -> None:
        """Keeps versions that were taken for later; wakes no one."""
        with self._lock:
            for number in numbers:
                self._versions.setdefault((model, number))

    def loaded(self, model: str, number: int, generation: int) -> None:
        """Notes the generation of a load that is complete; what was queued before it is done."""
        with self._lock:
            self._generations[model, number] = generation
            self._versions.pop((model, number), None)

    def take(self) -> Sequence[tuple[str, int]]:
        """Removes and returns the queued versions, those that were added first before others: model and number."""
        with self._lock:
            found, self._versions = tuple(self._versions), {}
        return found
