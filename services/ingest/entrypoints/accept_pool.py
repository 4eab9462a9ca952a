"""Threads that accept batches of records, with a limit on the bytes that wait for the bus."""

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
# Memory of a call in addition to its records.
_MIN_BYTES = 16 * 1024


class AcceptPool:
    """Accepts batches in parallel; refuses at once what would exceed the memory limit.

    While the bus is slow or unavailable, each batch stays in memory until it is published or given up, even if its
    caller has left. Create it once, `close` it at the end.
    """

    def __init__(self, at_once: int, max_bytes: int) -> None:
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="accept")
        self._limit = max_bytes
        self._lock = threading.Lock()
        self._held = 0

    async def run(self, size: int, accept: Callable[[], T]) -> T:
        """The result of accepting a batch of `size` bytes.

        Raises:
            ResourceExhaustedError: too much is waiting already; a single batch is always accepted.
        """
        cost = max(size, _MIN_BYTES)
        with self._lock:
            if self._held and self._held + cost > self._limit:
                raise ResourceExhaustedError(
                    f"{self._held} bytes of records are waiting for Kafka, the limit is {self._limit}. Retry later.",
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
            # Also if the caller left before a thread was free: then the batch is dropped.
            self._release(cost)

        running.add_done_callback(done)
        return await asyncio.wrap_future(running)

    def _release(self, cost: int) -> None:
        with self._lock:
            self._held -= cost

    def close(self) -> None:
        """Waits for the current batches."""
        self._pool.shutdown()
