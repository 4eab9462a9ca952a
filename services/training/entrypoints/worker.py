"""The loop that supervises runs beside the server."""

from __future__ import annotations

from services.kit.loops import step_forever
from services.kit.threads import in_thread
from services.training.app.supervision import Supervision


async def run_supervision(supervision: Supervision) -> None:
    """Runs steps until cancelled, whatever they raise: an error of one run must not end the supervision of others."""
    await step_forever(in_thread(supervision.step), "supervision", survives_defects=True)
