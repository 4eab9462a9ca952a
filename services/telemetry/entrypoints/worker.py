"""Deletes expired indices, in a task beside the server."""

from __future__ import annotations

from services.kit.loops import step_forever
from services.telemetry.app.retention import Sweeper

_EVERY_S = 3600.0


async def run_sweeper(sweeper: Sweeper) -> None:
    """Sweeps now and every hour, until it is cancelled."""
    await step_forever(sweeper.sweep, "deleting expired days", idle_s=_EVERY_S)
