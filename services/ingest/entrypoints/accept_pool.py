"""Threads that batches of records are accepted in, and how much of them may wait for the bus at a time."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from services.kit.errors import ResourceExhaustedError

T = TypeVar("T")

_RETRY_S = 1.0
# What a call costs beside its records.
_LEAST_BYTES = 16 * 1024


class AcceptPool:
    """Accepts batches side by side; what would exceed the memory for them is refused before it waits.

    While the bus is slow or away each batch stays in memory until it is taken or given up, and callers who left are
    followed by others. Create it once, `close` it at the end.
    """

    def __init__(self, at_once: int, most_bytes: int) -> None:
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="accept")
        self._most = most_bytes
        self._lock = threading.Lock()
        self._held = 0

    async def run(self, size: int, accept: Callable[[], T]) -> T:
        """The result of accepting a batch of so many bytes.

        Raises:
            ResourceExhaustedError: too much waits already; a single batch is always taken.
        """
        cost = max(size, _LEAST_BYTES)
        with self._lock:
            if self._held and self._held + cost > self._most:
                raise ResourceExhaustedError(
                    f"{self._held} bytes of records wait for Kafka, and {self._most} may; try again.",
                    reason="INGEST_BUSY",
                    retry_after_s=_RETRY_S,
                )
            self._held += cost
        trace = contextvars.copy_context()
        try:
            running = self._pool.submit(trace.run, accept)
        except RuntimeError:
            self._release(cost)
            raise

        def done(_: Future[T]) -> None:
            # Also where the caller left before a thread was free: the batch is dropped unaccepted.
            self._release(cost)

        running.add_done_callback(done)
        return await asyncio.wrap_future(running)

    def _release(self, cost: int) -> None:
        with self._lock:
            self._held -= cost

    def close(self) -> None:
        """Waits for the batches in hand."""
        self._pool.shutdown()
