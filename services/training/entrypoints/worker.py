"""The loop that supervises runs beside the server."""

from __future__ import annotations

import asyncio
import logging

from services.kit.errors import TidemillError
from services.training.app.supervision import Supervision

logger = logging.getLogger(__name__)
_PAUSE_S = 0.25
_AWAY_S = 2.0


async def run_supervision(supervision: Supervision) -> None:
    """Steps until it is cancelled, whatever a step raises; longer pauses while something is wrong."""
    while True:
        pause = _PAUSE_S
        try:
            await asyncio.to_thread(supervision.step)
        except TidemillError as error:
            logger.warning("supervision waits: %s", error.message)
            pause = _AWAY_S
        except Exception:
            # One thing that nobody foresaw must not end the supervision of all runs.
            logger.exception("a step of the supervision failed; it is tried again")
            pause = _AWAY_S
        await asyncio.sleep(pause)
