"""The loop that runs the builder beside the server."""

from __future__ import annotations

import asyncio
import logging

from services.cleaning.app.builder import Builder
from services.kit.errors import TidemillError, is_retryable

logger = logging.getLogger(__name__)

_IDLE_S = 0.2
_AWAY_S = 2.0


async def run_builder(builder: Builder) -> None:
    """Steps until it is cancelled; waits a little when there is nothing to do, longer when a part is away."""
    while True:
        try:
            busy = await asyncio.to_thread(builder.step)
        except TidemillError as error:
            if not is_retryable(error):
                raise
            logger.warning("building waits: %s", error.message)
            await asyncio.sleep(_AWAY_S)
            continue
        if not busy:
            await asyncio.sleep(_IDLE_S)
