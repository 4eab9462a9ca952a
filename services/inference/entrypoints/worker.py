"""Keeps Triton at what the store says, for as long as the service runs."""

from __future__ import annotations

import asyncio
import logging

from services.inference.app.publishing import Publishing
from services.kit.errors import TidemillError

logger = logging.getLogger(__name__)


async def run_reconciler(publishing: Publishing, pause_s: float) -> None:
    """Looks every `pause_s` seconds; a part that is away is told once until it is back."""
    away = ""
    while True:
        try:
            await asyncio.to_thread(publishing.reconcile)
            if away:
                logger.info("Triton and the bus answer again")
            away = ""
        except TidemillError as error:
            if error.reason != away:
                logger.warning("the models wait: %s", error.message)
            away = error.reason
        await asyncio.sleep(pause_s)
