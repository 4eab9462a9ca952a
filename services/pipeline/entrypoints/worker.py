"""Publishes pending feedback next to the server."""

from __future__ import annotations

from services.kit.runtime.loops import Wakeup, step_forever
from services.kit.threads import in_thread
from services.pipeline.app.feedback import FeedbackService

_EVERY_S = 60.0


async def publish_pending_feedback(feedback: FeedbackService, recorded: Wakeup) -> None:
    """Publishes after each wakeup and every minute, until it is cancelled."""
    await step_forever(in_thread(feedback.publish_pending), "feedback", idle_s=_EVERY_S, wakeup=recorded)
