"""Keeps Triton at what the store says, for as long as the service runs."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial

from services.inference.app.publishing import Publishing
from services.inference.app.serving import Suspects
from services.kit.errors import TidemillError

logger = logging.getLogger(__name__)


async def run_reconciler(publishing: Publishing, suspects: Suspects, pause_s: float) -> None:
    """Looks every `pause_s` seconds and when a model is suspected; a part that is away is told once."""
    away = ""
    wake = asyncio.Event()
    suspects.on_add(partial(asyncio.get_running_loop().call_soon_threadsafe, wake.set))
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
        with suppress(TimeoutError):
            await asyncio.wait_for(wake.wait(), pause_s)
        wake.clear()
