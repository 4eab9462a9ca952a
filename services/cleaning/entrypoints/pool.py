"""Threads for CPU-bound work, separate from those that wait for the database."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from services.kit.errors import ResourceExhaustedError

P = ParamSpec("P")
R = TypeVar("R")

_RETRY_AFTER_S = 1.0


class WorkPool:
    """A few threads with a short queue, so that costly requests neither exhaust the other threads nor pile up."""

    def __init__(self, threads: int = 2, waiting: int = 64) -> None:
        self._threads = ThreadPoolExecutor(threads, "clean-text")
        self._limit = threads + waiting
        self._present = 0

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result. If the caller disconnects, running work continues and waiting work is cancelled.

        Raises:
            ResourceExhaustedError: too many calls are waiting.
        """
        if self._present >= self._limit:
            raise ResourceExhaustedError(
                f"{self._present} texts are being cleaned or waiting. Retry later.",
                reason="CLEANING_BUSY",
                retry_after_s=_RETRY_AFTER_S,
            )
        context = contextvars.copy_context()
        future = self._threads.submit(context.run, partial(function, *args, **kwargs))
        self._present += 1
        loop = asyncio.get_running_loop()
        # The callback runs in the worker's thread, but only the event loop changes the counter.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Accepts no more work and drops what is waiting."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self) -> None:
        self._present -= 1
