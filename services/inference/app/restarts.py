"""Models whose process in the server seems to have died, whoever noticed it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class RestartQueue:
    """What the reconciler is to load again. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: set[str] = set()
        self._generations: dict[str, int] = {}
        self._wake: Callable[[], object] = lambda: None

    def on_add(self, wake: Callable[[], object]) -> None:
        """Calls `wake` whenever a model is added."""
        self._wake = wake

    def add(self, model: str, generation: int | None = None) -> bool:
        """Asks for a model to be loaded again; returns whether it will be.

        Args:
            model: its name.
            generation: of the model in the routes by which the request was sent that showed its process dead. A
                request from before the newest load may have met the process that was replaced, so it asks for nothing.
                None for what needs no such proof.
        """
        with self._lock:
            if generation is not None and generation < self._generations.get(model, 0):
                return False
            self._models.add(model)
        self._wake()
        return True

    def loaded(self, model: str, generation: int) -> None:
        """Notes the generation of a load that is complete; what was queued before it is done."""
        with self._lock:
            self._generations[model] = generation
            self._models.discard(model)

    def take(self) -> frozenset[str]:
        """Removes and returns the queued models."""
        with self._lock:
            found, self._models = frozenset(self._models), set()
        return found
