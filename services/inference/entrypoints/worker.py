"""Keeps the models in Triton equal to those in the store while the service runs."""

from __future__ import annotations

import asyncio

from services.inference.app.reconciling import Reconciler
from services.inference.app.restarts import RestartQueue
from services.kit.loops import Wakeup, step_forever
from services.kit.threads import in_thread


async def run_reconciler(reconciler: Reconciler, restarts: RestartQueue, pause_s: float) -> None:
    """Reconciles every `pause_s` seconds and whenever a model is queued, whatever a step raises."""
    wakeup = Wakeup(asyncio.get_running_loop())
    restarts.on_add(wakeup.set)
    reconcile = in_thread(reconciler.reconcile)
    await step_forever(reconcile, "reconciling models", idle_s=pause_s, wakeup=wakeup, survives_defects=True)
