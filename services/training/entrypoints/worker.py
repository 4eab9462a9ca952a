"""The loop that supervises runs beside the server."""

from __future__ import annotations

import asyncio
import logging

from services.kit.errors import TidemillError, is_retryable
from services.training.app.supervision import Supervision

logger = logging.getLogger(__name__)
_PAUSE_S = 0.25
_AWAY_S = 2.0


async def run_supervision(supervision: Supervision) -> None:
    """Steps until it is cancelled; longer pauses while a part is away."""
    while True:
        pause = _PAUSE_S
        try:
            await asyncio.to_thread(supervision.step)
        except TidemillError as error:
            if not is_retryable(error):
                raise
            logger.warning("supervision waits: %s", error.message)
            pause = _AWAY_S
        await asyncio.sleep(pause)
