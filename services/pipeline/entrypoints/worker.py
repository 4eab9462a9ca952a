"""Publishes pending feedback beside the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from services.kit.errors import TidemillError, is_retryable
from services.pipeline.app.feedback import FeedbackService

logger = logging.getLogger(__name__)
_EVERY_S = 60.0
_RETRY_S = 5.0


class Signal:
    """Wakes one task of an event loop; `set` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._event = loop, asyncio.Event()

    def set(self) -> None:
        """Wakes the waiting task; if none is waiting, the next `wait` returns at once."""
        self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_s: float) -> None:
        """Returns once `set` was called since the last `wait`, or after `timeout_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        self._event.clear()


async def publish_pending_feedback(feedback: FeedbackService, recorded: Signal) -> None:
    """Publishes after each signal and every minute, until it is cancelled."""
    while True:
        try:
            await asyncio.to_thread(feedback.publish_pending)
        except TidemillError as error:
            if not is_retryable(error):
                raise
            logger.warning("feedback stays pending: %s", error.message)
            await asyncio.sleep(_RETRY_S)
        else:
            await recorded.wait(_EVERY_S)
