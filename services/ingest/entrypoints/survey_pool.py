"""Threads for checking sources: several may hang in silent sources without blocking anyone else."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.ingest.app.interrupt import Interrupt
from services.kit.errors import ResourceExhaustedError

T = TypeVar("T")

_RETRY_S = 5.0


class SurveyPool:
    """Runs checks of sources; if the caller leaves, the check ends. Create it once, `close` it at the end."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="survey")
        self._lock = threading.Lock()
        self._busy: set[Interrupt] = set()

    async def run(self, look: Callable[[Interrupt], T]) -> T:
        """The result of a check.

        Raises:
            ResourceExhaustedError: all threads are busy with other sources.
        """
        interrupt, trace = Interrupt(), contextvars.copy_context()
        with self._lock:
            if len(self._busy) >= self._at_once:
                raise ResourceExhaustedError(
                    f"{self._at_once} sources are being checked, and none has answered yet. Retry later.",
                    reason="TOO_MANY_SOURCES",
                    retry_after_s=_RETRY_S,
                )
            self._busy.add(interrupt)

        def in_thread() -> T:
            try:
                return trace.run(look, interrupt)
            finally:
                with self._lock:
                    self._busy.discard(interrupt)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, in_thread)
        except asyncio.CancelledError:
            interrupt.set()
            raise

    def close(self) -> None:
        """Ends the checks."""
        with self._lock:
            busy = list(self._busy)
        for interrupt in busy:
            interrupt.set()
        self._pool.shutdown(wait=True)
