"""Messages about triggers to domain objects and back."""

from __future__ import annotations

from datetime import UTC

from tidemill.pipeline.v1 import trigger_pb2 as pb

from services.kit.grpc.messages import timestamp
from services.pipeline.app.triggers import TriggerView
from services.pipeline.domain.drift import (
    DEFAULT_EVERY_HOURS,
    DEFAULT_FALSE_ALARM,
    DEFAULT_MIN_ANSWERS,
    DEFAULT_MIN_RATINGS,
    DriftRules,
    Signal,
)
from services.pipeline.domain.triggers import (
    DEFAULT_CYCLES_PER_DAY,
    DEFAULT_DEBOUNCE_MINUTES,
    Alert,
    QuietHours,
    Triggers,
)


def triggers_from(message: pb.Triggers) -> Triggers:
    """The rules; what is left out has the default that the contract gives it."""
    return Triggers(
        new_records=message.new_records,
        corrections=message.corrections,
        schedule=message.schedule,
        time_zone=message.time_zone or "UTC",
        debounce_minutes=(
            message.debounce_minutes if message.HasField("debounce_minutes") else DEFAULT_DEBOUNCE_MINUTES
        ),
        max_cycles_per_day=(
            message.max_cycles_per_day if message.HasField("max_cycles_per_day") else DEFAULT_CYCLES_PER_DAY
        ),
        max_train_minutes=message.max_train_minutes,
        quiet_hours=tuple(QuietHours(item.start, item.end) for item in message.quiet_hours),
        drift=_drift_from(message.drift) if message.HasField("drift") else None,
        during_rollouts=message.during_rollouts,
        alerts=tuple(message.alerts),
    )


def _drift_from(message: pb.Drift) -> DriftRules:
    return DriftRules(
        signals=tuple(signal for signal in Signal if signal.value in message.signals) or tuple(Signal),
        min_answers=message.min_answers or DEFAULT_MIN_ANSWERS,
        min_ratings=message.min_ratings or DEFAULT_MIN_RATINGS,
        every_hours=message.every_hours or DEFAULT_EVERY_HOURS,
        false_alarm=message.false_alarm or DEFAULT_FALSE_ALARM,
    )


def triggers_to(triggers: Triggers) -> pb.Triggers:
    """The rules as a message."""
    message = pb.Triggers(
        new_records=triggers.new_records,
        corrections=triggers.corrections,
        schedule=triggers.schedule,
        time_zone=triggers.time_zone,
        debounce_minutes=triggers.debounce_minutes,
        max_cycles_per_day=triggers.max_cycles_per_day,
        max_train_minutes=triggers.max_train_minutes,
        quiet_hours=[pb.QuietHours(start=item.start, end=item.end) for item in triggers.quiet_hours],
        during_rollouts=triggers.during_rollouts,
        alerts=triggers.alerts,
    )
    if (drift := triggers.drift) is not None:
        rules = pb.Drift(
            signals=[signal.value for signal in drift.signals],
            min_answers=drift.min_answers,
            min_ratings=drift.min_ratings,
            every_hours=drift.every_hours,
            false_alarm=drift.false_alarm,
        )
        message.drift.CopyFrom(rules)
    return message


def alert_from(message: pb.Alert) -> tuple[str, Alert]:
    """The name of its pipeline, and the alert."""
    alert = Alert(
        name=message.name,
        fingerprint=message.fingerprint,
        start_time=message.start_time.ToDatetime(UTC),
        summary=message.summary,
        resolved=message.resolved,
    )
    return message.pipeline.removeprefix("pipelines/"), alert


def trigger_to(view: TriggerView) -> pb.Trigger:
    """The triggers of a pipeline with their current decision."""
    trigger, decision = view.trigger, view.decision
    message = pb.Trigger(
        pipeline=f"pipelines/{trigger.pipeline}",
        paused=trigger.paused,
        pause_reason=trigger.pause_reason,
        checks=[
            pb.TriggerCheck(
                condition=check.condition, met=check.met, count=check.count, threshold=check.threshold, why=check.why
            )
            for check in decision.checks
        ],
        holds=decision.holds,
        summary=decision.summary,
        firings=[
            pb.TriggerFiring(
                fire_time=timestamp(item.fire_time), reasons=item.reasons, cycle=item.cycle, error=item.error
            )
            for item in view.firings
        ],
    )
    if trigger.spec.triggers is not None:
        message.triggers.CopyFrom(triggers_to(trigger.spec.triggers))
    if view.next_schedule is not None:
        message.next_schedule_time.CopyFrom(timestamp(view.next_schedule))
    return message
