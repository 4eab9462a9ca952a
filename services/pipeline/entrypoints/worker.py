"""What the service does next to its server."""

from __future__ import annotations

from functools import partial

from services.kit.loops import Wakeup, step_forever
from services.kit.threads import in_thread
from services.pipeline.app.drift import DriftWatch
from services.pipeline.app.exclusions import Exclusions, TaughtRecords
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.app.judges import Judges
from services.pipeline.app.notices import Notices
from services.pipeline.app.rollout_runner import RolloutRunner
from services.pipeline.app.triggers import PipelineTriggers

_EVERY_S = 60.0
_TRIGGERS_EVERY_S = 10.0
_LOOK_EVERY_S = 1.0
"""How often roll-outs are looked at: a guard-rail acts within some seconds of the calls that show the fault."""


async def publish_pending_feedback(feedback: FeedbackService, recorded: Wakeup) -> None:
    """Publishes after each wakeup and every minute, until it is cancelled."""
    await step_forever(in_thread(feedback.publish_pending), "feedback", idle_s=_EVERY_S, wakeup=recorded)


async def start_triggered_cycles(triggers: PipelineTriggers) -> None:
    """Looks at all triggers every ten seconds, until it is cancelled."""
    await step_forever(triggers.step, "triggers", idle_s=_TRIGGERS_EVERY_S, survives_defects=True)


async def watch_drift(drift: DriftWatch) -> None:
    """Looks for drift every minute where a look is due, until it is cancelled."""
    await step_forever(drift.step, "drift", idle_s=_EVERY_S, survives_defects=True)


async def carry_out_erasures(exclusions: Exclusions, taught: TaughtRecords) -> None:
    """Has cleaning erase what is pending, every ten seconds, until it is cancelled."""
    step = partial(exclusions.carry_out, taught)
    await step_forever(step, "erasures", idle_s=_TRIGGERS_EVERY_S, survives_defects=True)


async def run_judges(judges: Judges) -> None:
    """Has judges rate what waits for them, looking every second, until it is cancelled."""
    try:
        await step_forever(judges.step, "judges", idle_s=_LOOK_EVERY_S, survives_defects=True)
    finally:
        await judges.stop()


async def run_rollouts(runner: RolloutRunner, decided: Wakeup) -> None:
    """Looks at all roll-outs every second, and after each wakeup, until it is cancelled."""
    await step_forever(runner.step, "roll-outs", idle_s=_LOOK_EVERY_S, wakeup=decided, survives_defects=True)


async def send_notices(notices: Notices) -> None:
    """Sends what is pending every second, until it is cancelled."""
    await step_forever(in_thread(notices.send_pending), "notices", idle_s=_LOOK_EVERY_S, survives_defects=True)
