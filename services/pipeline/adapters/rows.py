"""Domain objects to rows and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import timedelta
from typing import Any

from services.kit.failure import Failure
from services.kit.storage.columns import from_micros, to_micros
from services.masking.masks import MaskSpec
from services.pipeline.adapters.rollout_rows import plan_json, plan_of
from services.pipeline.domain.capture import Capture, CapturedAnswer, ReviewRules
from services.pipeline.domain.cycle import Cycle, CycleState, PipelineSpec, Stage, StageState
from services.pipeline.domain.drift import DriftRules
from services.pipeline.domain.drift import Signal as DriftSignal
from services.pipeline.domain.feedback import Feedback, Signal
from services.pipeline.domain.gate import Gate, Preference, Verdict
from services.pipeline.domain.judge import (
    ClassifierJudge,
    JudgeKind,
    JudgeRules,
    JudgeSpec,
    LanguageModelJudge,
)
from services.pipeline.domain.learning import FeedbackUse, Kind, Lesson
from services.pipeline.domain.triggers import QuietHours, Triggers


def cycle_row(cycle: Cycle) -> dict[str, Any]:
    """All columns of `cycles` but `cancel_requested`."""
    body = {
        "stages": [_stage_json(stage) for stage in cycle.stages],
        "imports": cycle.imports,
        "lessons": cycle.lessons,
        "dataset_version": cycle.dataset_version,
        "run": cycle.run,
        "report": cycle.report,
        "verdicts": [asdict(verdict) for verdict in cycle.verdicts],
        "model_version": cycle.model_version,
        "failure": asdict(cycle.failure) if cycle.failure else None,
        "reasons": cycle.reasons,
    }
    return {
        "cycle_id": cycle.cycle_id,
        "pipeline": cycle.pipeline,
        "at_work": None if cycle.state.final else cycle.pipeline,
        "state": cycle.state.value,
        "spec": spec_row(cycle.spec),
        "body": body,
        "request_id": cycle.request_id or None,
        "traceparent": cycle.traceparent,
        "announced": cycle.announced,
        "create_time": cycle.create_time,
        "update_time": cycle.update_time,
    }


def cycle_of(row: Mapping[Any, Any]) -> Cycle:
    """The cycle of a row."""
    body = row["body"]
    return Cycle(
        pipeline=row["pipeline"],
        cycle_id=row["cycle_id"],
        spec=spec_of(row["spec"]),
        create_time=row["create_time"],
        update_time=row["update_time"],
        state=CycleState(row["state"]),
        stages=tuple(_stage_of(item) for item in body["stages"]),
        imports=tuple(body["imports"]),
        lessons=body.get("lessons"),
        dataset_version=body["dataset_version"],
        run=body["run"],
        report=body["report"],
        verdicts=tuple(Verdict(**item) for item in body["verdicts"]),
        model_version=body["model_version"],
        failure=Failure(**body["failure"]) if body["failure"] else None,
        reasons=tuple(body.get("reasons", ())),
        traceparent=row["traceparent"],
        request_id=row["request_id"] or "",
        cancel_requested=row["cancel_requested"],
        announced=row["announced"],
    )


def spec_row(spec: PipelineSpec) -> dict[str, Any]:
    """JSON form of a spec, see `spec_of`."""
    plan = plan_json(spec.plan) if spec.plan is not None else None
    row = {**asdict(spec), "preference": spec.preference.value, "plan": plan}
    if spec.triggers is not None and (drift := spec.triggers.drift) is not None:
        row["triggers"]["drift"]["signals"] = [signal.value for signal in drift.signals]
    return row


def spec_of(value: Mapping[str, Any]) -> PipelineSpec:
    """The spec of its JSON form; what earlier releases did not store is left out."""
    return PipelineSpec(
        name=value["name"],
        sources=tuple(value["sources"]),
        dataset=value["dataset"],
        training=value["training"],
        gate=Gate(**value["gate"]),
        model=value["model"],
        preference=Preference(value["preference"]),
        capture=capture_of(value["capture"]) if value.get("capture") else None,
        feedback=FeedbackUse(**value["feedback"]) if value.get("feedback") else None,
        plan=plan_of(value["plan"]) if value.get("plan") else None,
        triggers=_triggers_of(value["triggers"]) if value.get("triggers") else None,
    )


def _triggers_of(value: Mapping[str, Any]) -> Triggers:
    found = {**value, "quiet_hours": tuple(QuietHours(**item) for item in value["quiet_hours"])}
    found["alerts"] = tuple(value.get("alerts", ()))
    if (drift := value.get("drift")) is not None:
        signals = tuple(DriftSignal(signal) for signal in drift["signals"])
        found["drift"] = DriftRules(**{**drift, "signals": signals})
    return Triggers(**found)


def _stage_json(stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "state": stage.state.value,
        "resources": stage.resources,
        "progress": stage.progress,
        "start_time": to_micros(stage.start_time) if stage.start_time else None,
        "end_time": to_micros(stage.end_time) if stage.end_time else None,
        "reused": stage.reused,
        "summary": stage.summary,
    }


def _stage_of(value: Mapping[str, Any]) -> Stage:
    start, end = value["start_time"], value["end_time"]
    return Stage(
        name=value["name"],
        state=StageState(value["state"]),
        resources=tuple(value["resources"]),
        progress=value["progress"],
        start_time=from_micros(start) if start is not None else None,
        end_time=from_micros(end) if end is not None else None,
        reused=value["reused"],
        summary=value["summary"],
    )


def capture_of(value: Mapping[str, Any]) -> Capture:
    """What is kept, of its JSON form (`asdict`)."""
    masks = tuple(MaskSpec(item["name"], item["params"]) for item in value["masks"])
    review = ReviewRules(**value["review"]) if value.get("review") else None
    judges = tuple(_judge_of(item) for item in value.get("judges", ()))
    return Capture(value["sample"], masks, value["keep_days"], review, judges)


def _judge_of(value: Mapping[str, Any]) -> JudgeSpec:
    kind: JudgeKind
    given = value["kind"]
    # Each kind has a field of its own that is always there.
    if "instructions" in given:
        kind = LanguageModelJudge(**given)
    elif "good_labels" in given:
        kind = ClassifierJudge(**{**given, "good_labels": tuple(given["good_labels"])})
    else:
        kind = JudgeRules(**given)
    return JudgeSpec(**{**value, "kind": kind})


def feedback_row(item: Feedback) -> dict[str, Any]:
    """All columns of `feedback` but `announced`."""
    return {**_fields_of(item), "request_id": item.request_id or None, "signal": item.signal.value}


def feedback_of(row: Mapping[Any, Any]) -> Feedback:
    """The feedback of a row."""
    return Feedback(
        feedback_id=row["feedback_id"],
        answer=row["answer"],
        rating=row["rating"],
        correction=row["correction"],
        author=row["author"],
        create_time=row["create_time"],
        model_version=row["model_version"],
        request_id=row["request_id"] or "",
        traceparent=row["traceparent"],
        label=row["label"],
        comment=row["comment"],
        episode=row["episode"],
        signal=Signal(row["signal"]),
        tenant=row["tenant"],
        api_key=row["api_key"],
    )


def captured_row(answer: CapturedAnswer, keep: timedelta) -> dict[str, Any]:
    """Row of `captured_answers`."""
    return {**_fields_of(answer), "model": answer.model, "expire_time": answer.answer_time + keep}


def _fields_of(item: Feedback | CapturedAnswer) -> dict[str, Any]:
    # Unlike `asdict` it copies no value, which takes ten times as long: these are the rows of which there are most.
    return {each.name: getattr(item, each.name) for each in fields(item)}


def captured_of(row: Mapping[Any, Any]) -> CapturedAnswer:
    """The captured answer of a row."""
    return CapturedAnswer(**{field.name: row[field.name] for field in fields(CapturedAnswer)})


def lesson_row(lesson: Lesson) -> dict[str, Any]:
    """Row of `lessons`."""
    return {**asdict(lesson), "kind": lesson.kind.value, "model": lesson.model}


def lesson_of_row(row: Mapping[Any, Any]) -> Lesson:
    """The lesson of a row."""
    values = {field.name: row[field.name] for field in fields(Lesson)}
    return Lesson(**{**values, "kind": Kind(row["kind"])})
