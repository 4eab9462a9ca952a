"""What is due beside the server: when feedback was recorded, and now and then."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from services.kit.errors import TidemillError, is_retryable
from services.pipeline.app.feedback import FeedbackBook

logger = logging.getLogger(__name__)
_EVERY_S = 60.0
_AGAIN_S = 5.0


class Bell:
    """Wakes one task of an event loop; `ring` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._rung = loop, asyncio.Event()

    def ring(self) -> None:
        """Wakes who waits, or lets who waits next go on at once."""
        self._loop.call_soon_threadsafe(self._rung.set)

    async def wait(self, timeout_s: float) -> None:
        """Returns when it was rung since the last time, else after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._rung.wait()
        self._rung.clear()


async def tend_feedback(feedback: FeedbackBook, recorded: Bell) -> None:
    """Tends it at each ring and every minute until it is cancelled."""
    while True:
        try:
            await asyncio.to_thread(feedback.tend)
        except TidemillError as error:
            if not is_retryable(error):
                raise
            logger.warning("feedback is told later: %s", error.message)
            await asyncio.sleep(_AGAIN_S)
        else:
            await recorded.wait(_EVERY_S)
