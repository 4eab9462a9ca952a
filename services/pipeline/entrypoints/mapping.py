"""Messages of the contract to domain objects and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion
from tidemill.pipeline.v1 import cycle_pb2
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.training.v1.run_pb2 import Report

from services.kit.grpc.messages import failure_to, timestamp
from services.kit.ids import sha256_hex
from services.masking.masks import MaskSpec
from services.pipeline.domain.capture import (
    DEFAULT_KEEP_DAYS,
    DEFAULT_LEASE_MINUTES,
    Capture,
    CapturedAnswer,
    CapturePolicy,
    ReviewRules,
)
from services.pipeline.domain.cycle import Cycle, CycleState, PipelineSpec, Stage, StageState
from services.pipeline.domain.feedback import Feedback, Signal
from services.pipeline.domain.gate import Gate, Preference
from services.pipeline.domain.learning import DEFAULT_CAP, NEW_LABEL_PEOPLE, NEW_LABEL_RECORDS, FeedbackUse
from services.pipeline.entrypoints.judge_mapping import judge_from, judge_to
from services.pipeline.entrypoints.rollout_mapping import fill_plan, plan_from
from services.pipeline.entrypoints.trigger_mapping import triggers_from, triggers_to

_STAGE_STATES = {
    StageState.PENDING: cycle_pb2.Stage.STATE_PENDING,
    StageState.RUNNING: cycle_pb2.Stage.STATE_RUNNING,
    StageState.SUCCEEDED: cycle_pb2.Stage.STATE_SUCCEEDED,
    StageState.FAILED: cycle_pb2.Stage.STATE_FAILED,
    StageState.SKIPPED: cycle_pb2.Stage.STATE_SKIPPED,
}
_CYCLE_STATES = {
    CycleState.RUNNING: cycle_pb2.Cycle.STATE_RUNNING,
    CycleState.SUCCEEDED: cycle_pb2.Cycle.STATE_SUCCEEDED,
    CycleState.FAILED: cycle_pb2.Cycle.STATE_FAILED,
    CycleState.CANCELLED: cycle_pb2.Cycle.STATE_CANCELLED,
    CycleState.REJECTED: cycle_pb2.Cycle.STATE_REJECTED,
    CycleState.UNCHANGED: cycle_pb2.Cycle.STATE_UNCHANGED,
}
_PREFERENCES: dict[int, Preference] = {
    cycle_pb2.Rollout.PREFERENCE_UNSPECIFIED: Preference.FASTEST,
    cycle_pb2.Rollout.PREFERENCE_FASTEST: Preference.FASTEST,
    cycle_pb2.Rollout.PREFERENCE_SMALLEST: Preference.SMALLEST,
    cycle_pb2.Rollout.PREFERENCE_BEST_QUALITY: Preference.BEST_QUALITY,
}
_PREFERENCE_MESSAGES = {
    Preference.FASTEST: cycle_pb2.Rollout.PREFERENCE_FASTEST,
    Preference.SMALLEST: cycle_pb2.Rollout.PREFERENCE_SMALLEST,
    Preference.BEST_QUALITY: cycle_pb2.Rollout.PREFERENCE_BEST_QUALITY,
}
_SIGNALS: dict[int, Signal] = {
    pb.FEEDBACK_SIGNAL_UNSPECIFIED: Signal.UNKNOWN,
    pb.FEEDBACK_SIGNAL_ACCEPTED: Signal.ACCEPTED,
    pb.FEEDBACK_SIGNAL_EDITED: Signal.EDITED,
    pb.FEEDBACK_SIGNAL_RETRIED: Signal.RETRIED,
}
_SIGNAL_MESSAGES = {
    Signal.UNKNOWN: pb.FEEDBACK_SIGNAL_UNSPECIFIED,
    Signal.ACCEPTED: pb.FEEDBACK_SIGNAL_ACCEPTED,
    Signal.EDITED: pb.FEEDBACK_SIGNAL_EDITED,
    Signal.RETRIED: pb.FEEDBACK_SIGNAL_RETRIED,
}
_UNDATED = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the gateway says in `x-tidemill-tenant` and `x-tidemill-key`; empty inside the mesh."""

    tenant: str = ""
    key: str = ""


def caller_of(context: Any) -> Caller:
    """The caller of a call."""
    given = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    return Caller(given.get("x-tidemill-tenant", ""), given.get("x-tidemill-key", ""))


def spec_from(spec: cycle_pb2.PipelineSpec) -> PipelineSpec:
    """The domain's spec."""
    value = MessageToDict(spec, preserving_proto_field_name=True)
    return PipelineSpec(
        name=spec.name,
        sources=tuple(value["sources"]),
        dataset=value["dataset"],
        training=value["training"],
        gate=gate_from(spec.gate),
        model=spec.rollout.model,
        preference=_PREFERENCES[spec.rollout.preference],
        capture=capture_from(spec.capture) if spec.HasField("capture") else None,
        feedback=_use_from(spec.feedback) if spec.HasField("feedback") else None,
        plan=plan_from(spec.rollout),
        triggers=triggers_from(spec.triggers) if spec.HasField("triggers") else None,
    )


def gate_from(message: cycle_pb2.Gate) -> Gate:
    """The rules of the gate; a demand that is left out is None."""
    return Gate(
        max_quality_loss=message.max_quality_loss,
        min_gain_over_base=message.min_gain_over_base,
        min_quality=message.min_quality,
        max_loss_to_champion=message.max_loss_to_champion if message.HasField("max_loss_to_champion") else None,
        min_quality_on_corrections=(
            message.min_quality_on_corrections if message.HasField("min_quality_on_corrections") else None
        ),
        min_gain_on_corrections=message.min_gain_on_corrections
        if message.HasField("min_gain_on_corrections")
        else None,
        max_slice_loss_to_champion=(
            message.max_slice_loss_to_champion if message.HasField("max_slice_loss_to_champion") else None
        ),
    )


def spec_to(spec: PipelineSpec) -> cycle_pb2.PipelineSpec:
    """The contract's spec."""
    value = {"name": spec.name, "sources": list(spec.sources), "dataset": spec.dataset, "training": spec.training}
    message = ParseDict(value, cycle_pb2.PipelineSpec())
    message.gate.MergeFrom(cycle_pb2.Gate(**asdict(spec.gate)))
    message.rollout.model = spec.model
    message.rollout.preference = _PREFERENCE_MESSAGES[spec.preference]
    if spec.plan is not None:
        fill_plan(spec.plan, message.rollout)
    if spec.capture is not None:
        message.capture.CopyFrom(capture_to(spec.capture))
    if (use := spec.feedback) is not None:
        message.feedback.corrections.weight, message.feedback.accepted.weight = use.corrections, use.accepted
        message.feedback.per_person_cap, message.feedback.per_key_cap = use.per_person_cap, use.per_key_cap
        new = message.feedback.new_labels
        new.min_records, new.min_people = use.new_label_records, use.new_label_people
        new.never = not use.new_label_records
    if spec.triggers is not None:
        message.triggers.CopyFrom(triggers_to(spec.triggers))
    return message


def capture_from(message: cycle_pb2.Capture) -> Capture:
    """What is kept of answers; what is empty has the default that the contract gives it."""
    return Capture(
        sample=message.sample if message.HasField("sample") else 1.0,
        masks=tuple(MaskSpec(item.name, MessageToDict(item.params)) for item in message.masks),
        keep_days=message.keep_days or DEFAULT_KEEP_DAYS,
        review=_rules_from(message.review) if message.HasField("review") else None,
        judges=tuple(map(judge_from, message.judges)),
    )


def _rules_from(message: cycle_pb2.ReviewRules) -> ReviewRules:
    return ReviewRules(
        message.random_share,
        message.low_confidence,
        message.double_share,
        message.lease_minutes or DEFAULT_LEASE_MINUTES,
        message.judges_at_odds,
    )


def capture_to(capture: Capture) -> cycle_pb2.Capture:
    """What is kept of answers, as a message."""
    message = cycle_pb2.Capture(sample=capture.sample, keep_days=capture.keep_days)
    for mask in capture.masks:
        item = message.masks.add(name=mask.name)
        if mask.params:
            item.params.update(dict(mask.params))
    if capture.review is not None:
        message.review.CopyFrom(cycle_pb2.ReviewRules(**asdict(capture.review)))
    message.judges.extend(map(judge_to, capture.judges))
    return message


def policy_to(policy: CapturePolicy) -> pb.CapturePolicy:
    """The rule of a model as a message for gateways; who judges what is not their business."""
    return pb.CapturePolicy(model=policy.model, capture=capture_to(replace(policy.capture, judges=())))


def captured_to(answer: CapturedAnswer) -> pb.CapturedAnswer:
    """A captured answer as a message."""
    return pb.CapturedAnswer(
        name=answer.name,
        answer_time=timestamp(answer.answer_time),
        model_version=answer.model_version,
        role=answer.role,
        tenant=answer.tenant,
        prompt=answer.prompt,
        conversation=answer.conversation,
        text=answer.text,
        label=answer.label,
        score=answer.score,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        latency_ms=answer.latency_ms,
    )


def judgement_from(message: pb.RecordFeedbackRequest | pb.Judgement, caller: Caller, traceparent: str) -> Feedback:
    """A judgement, still without id and time."""
    return Feedback(
        feedback_id="",
        answer=message.answer,
        rating=message.rating,
        correction=message.correction,
        author=message.author,
        create_time=_UNDATED,
        request_id=message.request_id,
        traceparent=traceparent,
        label=message.label,
        comment=message.comment,
        episode=message.episode,
        signal=_SIGNALS[message.signal],
        tenant=caller.tenant,
        api_key=caller.key,
    )


def identified(request: pb.BatchRecordFeedbackRequest) -> Sequence[pb.Judgement]:
    """The judgements of a batch; those without a request id get one from the batch's, if it has one.

    A repeat after the service was killed, before it had stored its response, then records nothing twice.
    """
    if not request.request_id:
        return list(request.judgements)
    batch = sha256_hex("batch", request.request_id)[:48]
    found = []
    for number, item in enumerate(request.judgements):
        own = pb.Judgement()
        own.CopyFrom(item)
        own.request_id = item.request_id or f"batch-{batch}-{number}"
        found.append(own)
    return found


def _use_from(message: cycle_pb2.FeedbackUse) -> FeedbackUse:
    return FeedbackUse(
        corrections=message.corrections.weight,
        accepted=message.accepted.weight,
        per_person_cap=message.per_person_cap or DEFAULT_CAP,
        per_key_cap=message.per_key_cap,
        new_label_records=0 if message.new_labels.never else message.new_labels.min_records or NEW_LABEL_RECORDS,
        new_label_people=message.new_labels.min_people or NEW_LABEL_PEOPLE,
    )


def cycle_to(cycle: Cycle) -> cycle_pb2.Cycle:
    """The contract's cycle."""
    message = cycle_pb2.Cycle(
        name=cycle.name,
        create_time=timestamp(cycle.create_time),
        update_time=timestamp(cycle.update_time),
        spec=spec_to(cycle.spec),
        state=_CYCLE_STATES[cycle.state],
        stages=[_stage(stage) for stage in cycle.stages],
        verdicts=[
            cycle_pb2.GateVerdict(
                precision=verdict.precision,
                passed=verdict.passed,
                quality_loss=verdict.quality_loss,
                why=verdict.why,
                chosen=verdict.chosen,
            )
            for verdict in cycle.verdicts
        ],
        model_version=cycle.model_version,
        trace_id=_trace_id(cycle.traceparent),
        failure=failure_to(cycle.failure),
        reused=cycle.reused,
        reasons=cycle.reasons,
    )
    if cycle.dataset_version is not None:
        message.dataset_version.CopyFrom(ParseDict(dict(cycle.dataset_version), DatasetVersion()))
    if cycle.report is not None:
        message.report.CopyFrom(ParseDict(dict(cycle.report), Report()))
    return message


def feedback_to(feedback: Feedback) -> pb.Feedback:
    """The contract's feedback."""
    return pb.Feedback(
        name=feedback.name,
        create_time=timestamp(feedback.create_time),
        answer=feedback.answer,
        rating=feedback.rating,
        correction=feedback.correction,
        author=feedback.author,
        model_version=feedback.model_version,
        label=feedback.label,
        comment=feedback.comment,
        episode=feedback.episode,
        signal=_SIGNAL_MESSAGES[feedback.signal],
    )


def _stage(stage: Stage) -> cycle_pb2.Stage:
    message = cycle_pb2.Stage(
        name=stage.name,
        state=_STAGE_STATES[stage.state],
        resources=stage.resources,
        reused=stage.reused,
        summary=stage.summary,
    )
    if stage.progress is not None:
        ParseDict(dict(stage.progress), message.progress)
    if stage.start_time is not None:
        message.start_time.CopyFrom(timestamp(stage.start_time))
    if stage.end_time is not None:
        message.end_time.CopyFrom(timestamp(stage.end_time))
    return message


def _trace_id(traceparent: str) -> str:
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else ""
