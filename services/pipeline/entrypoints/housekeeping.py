"""What is due now and then, beside the server."""

from __future__ import annotations

import asyncio
import logging

from services.kit.errors import TidemillError, is_retryable
from services.pipeline.app.feedback import FeedbackBook

logger = logging.getLogger(__name__)
_EVERY_S = 60.0


async def tend_feedback(feedback: FeedbackBook) -> None:
    """Tends it every minute until it is cancelled."""
    while True:
        try:
            await asyncio.to_thread(feedback.tend)
        except TidemillError as error:
            if not is_retryable(error):
                raise
            logger.warning("feedback waits: %s", error.message)
        await asyncio.sleep(_EVERY_S)
