"""Messages of the contract to domain objects and back."""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict, ParseDict
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion
from tidemill.pipeline.v1 import cycle_pb2
from tidemill.pipeline.v1.pipeline_service_pb2 import Feedback as FeedbackMessage
from tidemill.training.v1.run_pb2 import Report

from services.kit.grpc.messages import failure_to, timestamp
from services.pipeline.domain.cycle import Cycle, CycleState, PipelineSpec, Stage, StageState
from services.pipeline.domain.feedback import Feedback
from services.pipeline.domain.gate import Gate, Preference

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


def spec_from(spec: cycle_pb2.PipelineSpec) -> PipelineSpec:
    """The domain's spec."""
    value = MessageToDict(spec, preserving_proto_field_name=True)
    return PipelineSpec(
        name=spec.name,
        sources=tuple(value["sources"]),
        dataset=value["dataset"],
        training=value["training"],
        gate=Gate(spec.gate.max_quality_loss, spec.gate.min_gain_over_base, spec.gate.min_quality),
        model=spec.rollout.model,
        preference=_PREFERENCES[spec.rollout.preference],
    )


def spec_to(spec: PipelineSpec) -> cycle_pb2.PipelineSpec:
    """The contract's spec."""
    value = {"name": spec.name, "sources": list(spec.sources), "dataset": spec.dataset, "training": spec.training}
    message = ParseDict(value, cycle_pb2.PipelineSpec())
    message.gate.max_quality_loss = spec.gate.max_quality_loss
    message.gate.min_gain_over_base = spec.gate.min_gain_over_base
    message.gate.min_quality = spec.gate.min_quality
    message.rollout.model = spec.model
    message.rollout.preference = _PREFERENCE_MESSAGES[spec.preference]
    return message


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
    )
    if cycle.dataset_version is not None:
        message.dataset_version.CopyFrom(ParseDict(dict(cycle.dataset_version), DatasetVersion()))
    if cycle.report is not None:
        message.report.CopyFrom(ParseDict(dict(cycle.report), Report()))
    return message


def feedback_to(feedback: Feedback) -> FeedbackMessage:
    """The contract's feedback."""
    return FeedbackMessage(
        name=feedback.name,
        create_time=timestamp(feedback.create_time),
        answer=feedback.answer,
        rating=feedback.rating,
        correction=feedback.correction,
        author=feedback.author,
        model_version=feedback.model_version,
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
