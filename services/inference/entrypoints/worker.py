"""Keeps the models in Triton equal to those in the store while the service runs."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial

from services.inference.app.publishing import Publishing
from services.inference.app.restarts import RestartQueue
from services.kit.errors import TidemillError

logger = logging.getLogger(__name__)


async def run_reconciler(publishing: Publishing, restarts: RestartQueue, pause_s: float) -> None:
    """Reconciles every `pause_s` seconds and whenever a model is queued; logs an outage once."""
    outage = ""
    wake = asyncio.Event()
    restarts.on_add(partial(asyncio.get_running_loop().call_soon_threadsafe, wake.set))
    while True:
        try:
            await asyncio.to_thread(publishing.reconcile)
            if outage:
                logger.info("Triton and the bus are available again")
            outage = ""
        except TidemillError as error:
            if error.reason != outage:
                logger.warning("models cannot be reconciled yet: %s", error.message)
            outage = error.reason
        with suppress(TimeoutError):
            await asyncio.wait_for(wake.wait(), pause_s)
        wake.clear()
