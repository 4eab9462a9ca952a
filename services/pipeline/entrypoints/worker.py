"""Work next to the server: publishes pending feedback, and lets triggers start cycles."""

from __future__ import annotations

from services.kit.runtime.loops import Wakeup, step_forever
from services.kit.threads import in_thread
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.app.triggers import PipelineTriggers

_EVERY_S = 60.0
_TRIGGERS_EVERY_S = 10.0


async def publish_pending_feedback(feedback: FeedbackService, recorded: Wakeup) -> None:
    """Publishes after each wakeup and every minute, until it is cancelled."""
    await step_forever(in_thread(feedback.publish_pending), "feedback", idle_s=_EVERY_S, wakeup=recorded)


async def start_triggered_cycles(triggers: PipelineTriggers) -> None:
    """Looks at all triggers every ten seconds, until it is cancelled."""
    await step_forever(triggers.step, "triggers", idle_s=_TRIGGERS_EVERY_S, survives_defects=True)
