"""Roll-outs and audit entries: messages of the contract to domain objects and back."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from tidemill.pipeline.v1 import cycle_pb2, rollout_pb2

from services.kit.grpc.messages import timestamp
from services.pipeline.app.rollouts import RolloutNow
from services.pipeline.domain.audit import AuditEntry
from services.pipeline.domain.rollout import Estimate, Rollout, RolloutState
from services.pipeline.domain.rollout_plan import (
    CANARY_SHARES,
    Comparison,
    GuardRails,
    Metric,
    PlannedStep,
    RolloutPlan,
    StepKind,
    StepLength,
)
from services.pipeline.engine.rollout_figures import ArmFigures

_STATES = {
    RolloutState.PENDING: rollout_pb2.ModelRollout.STATE_PENDING,
    RolloutState.RUNNING: rollout_pb2.ModelRollout.STATE_RUNNING,
    RolloutState.AWAITING_APPROVAL: rollout_pb2.ModelRollout.STATE_AWAITING_APPROVAL,
    RolloutState.PROMOTED: rollout_pb2.ModelRollout.STATE_PROMOTED,
    RolloutState.ROLLED_BACK: rollout_pb2.ModelRollout.STATE_ROLLED_BACK,
}
_KINDS = {
    StepKind.SHADOW: rollout_pb2.RolloutStep.KIND_SHADOW,
    StepKind.CANARY: rollout_pb2.RolloutStep.KIND_CANARY,
    StepKind.AB: rollout_pb2.RolloutStep.KIND_AB,
}
_METRICS = {
    Metric.ACCEPTED: cycle_pb2.AbTest.METRIC_ACCEPTED,
    Metric.RATING: cycle_pb2.AbTest.METRIC_RATING,
    Metric.LATENCY: cycle_pb2.AbTest.METRIC_LATENCY,
    Metric.JUDGED: cycle_pb2.AbTest.METRIC_JUDGED,
}
_METRIC_OF: dict[int, Metric] = {message: metric for metric, message in _METRICS.items()}
_AB_SHARE, _ALPHA = 0.5, 0.05


def plan_from(message: cycle_pb2.Rollout) -> RolloutPlan | None:
    """The plan of a pipeline's file, with the defaults that the contract names; None if the version serves at once."""
    steps: list[PlannedStep] = []
    if message.HasField("shadow"):
        steps.append(PlannedStep(StepKind.SHADOW, 0.0, _length_from(message.shadow)))
    if message.HasField("canary"):
        given = [PlannedStep(StepKind.CANARY, step.share, _length_from(step.until)) for step in message.canary.steps]
        steps += given or [PlannedStep(StepKind.CANARY, share) for share in CANARY_SHARES]
    if message.HasField("ab"):
        steps.append(PlannedStep(StepKind.AB, message.ab.share or _AB_SHARE, _length_from(message.ab.until)))
    if not steps:
        return None
    ab = message.ab
    comparison = Comparison(
        _METRIC_OF.get(ab.metric, Metric.ACCEPTED), ab.margin, ab.alpha or _ALPHA, ab.judge, ab.max_users
    )
    return RolloutPlan(tuple(steps), comparison, _rails_from(message.guard_rails), message.approve_first)


def fill_plan(plan: RolloutPlan, message: cycle_pb2.Rollout) -> None:
    """Writes a plan into the message of a roll-out."""
    for step in plan.steps:
        if step.kind is StepKind.SHADOW:
            message.shadow.CopyFrom(_length_to(step.length))
        elif step.kind is StepKind.CANARY:
            message.canary.steps.add(share=step.share, until=_length_to(step.length))
        else:
            message.ab.share = step.share
            message.ab.until.CopyFrom(_length_to(step.length))
            message.ab.metric = _METRICS[plan.comparison.metric]
            message.ab.margin, message.ab.alpha = plan.comparison.margin, plan.comparison.alpha
            message.ab.judge, message.ab.max_users = plan.comparison.judge, plan.comparison.max_users
    rails = plan.guard_rails
    message.guard_rails.max_error_rate = rails.max_error_rate
    message.guard_rails.max_refusal_rate = rails.max_refusal_rate
    message.guard_rails.max_latency_ratio = rails.max_latency_ratio
    message.guard_rails.max_latency_ms = rails.max_latency_ms
    message.approve_first = plan.approve_first


def rollout_to(now: RolloutNow) -> rollout_pb2.ModelRollout:
    """A roll-out as a message; figures are those of its current step."""
    rollout = now.rollout
    message = rollout_pb2.ModelRollout(
        name=rollout.name,
        create_time=timestamp(rollout.create_time),
        update_time=timestamp(rollout.update_time),
        cycle=rollout.cycle,
        model=rollout.model,
        candidate=rollout.candidate,
        champion=rollout.champion,
        state=_STATES[rollout.state],
        steps=_steps_to(rollout),
        step=rollout.step,
        frozen=rollout.frozen,
        reason=rollout.reason,
        applied=rollout.applied,
    )
    message.plan.model = rollout.model
    fill_plan(rollout.plan, message.plan)
    if now.figures is not None:
        share = rollout.planned.share
        message.arms.append(_arm_to(rollout.champion, 1 - share, now.figures.champion))
        message.arms.append(_arm_to(rollout.candidate, share, now.figures.candidate))
        message.estimates.extend(_estimate_to(each) for each in rollout.estimates)
    if now.advantage is not None:
        message.difference, message.lower, message.upper = now.advantage
    return message


def _estimate_to(estimate: Estimate) -> rollout_pb2.RolloutEstimate:
    return rollout_pb2.RolloutEstimate(
        time=timestamp(estimate.time),
        judged_users=estimate.users,
        difference=estimate.value,
        lower=estimate.low,
        upper=estimate.high,
    )


def entry_to(entry: AuditEntry) -> rollout_pb2.AuditEntry:
    """An audit entry as a message."""
    return rollout_pb2.AuditEntry(
        name=entry.name,
        create_time=timestamp(entry.create_time),
        actor=entry.actor,
        action=entry.action,
        resource=entry.resource,
        reason=entry.reason,
        facts=entry.facts,
    )


def _length_from(message: cycle_pb2.RolloutStage) -> StepLength:
    usual = StepLength()
    return StepLength(
        message.min_minutes if message.HasField("min_minutes") else usual.min_minutes,
        message.min_answers if message.HasField("min_answers") else usual.min_answers,
        message.max_minutes if message.HasField("max_minutes") else usual.max_minutes,
    )


def _length_to(length: StepLength) -> cycle_pb2.RolloutStage:
    return cycle_pb2.RolloutStage(
        min_minutes=length.min_minutes, min_answers=length.min_answers, max_minutes=length.max_minutes
    )


def _rails_from(message: cycle_pb2.GuardRails) -> GuardRails:
    usual = GuardRails()
    return GuardRails(
        message.max_error_rate if message.HasField("max_error_rate") else usual.max_error_rate,
        message.max_refusal_rate if message.HasField("max_refusal_rate") else usual.max_refusal_rate,
        message.max_latency_ratio if message.HasField("max_latency_ratio") else usual.max_latency_ratio,
        message.max_latency_ms,
    )


def _steps_to(rollout: Rollout) -> list[rollout_pb2.RolloutStep]:
    found = []
    for number, step in enumerate(rollout.plan.steps):
        message = rollout_pb2.RolloutStep(kind=_KINDS[step.kind], share=step.share)
        if number < len(rollout.records):
            record = rollout.records[number]
            message.reason = record.reason
            _set(message.start_time, record.start_time)
            _set(message.end_time, record.end_time)
        found.append(message)
    return found


def _set(message: Timestamp, moment: datetime | None) -> None:
    if moment is not None:
        message.CopyFrom(timestamp(moment))


def _arm_to(version: str, share: float, arm: ArmFigures) -> rollout_pb2.RolloutArm:
    return rollout_pb2.RolloutArm(
        model_version=version,
        share=share,
        answers=arm.step.calls,
        errors=arm.step.errors,
        refusals=arm.step.refusals,
        p99_latency_ms=arm.step.p99_ms(),
        users=arm.users,
        judged_users=arm.judged.count,
        mean=arm.judged.mean,
    )
