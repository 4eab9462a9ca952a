"""Roll-outs and audit entries to rows and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from services.kit.storage.columns import from_micros, to_micros
from services.pipeline.domain.audit import AuditEntry
from services.pipeline.domain.rollout import Estimate, Rollout, RolloutState, StepRecord
from services.pipeline.domain.rollout_plan import (
    Comparison,
    GuardRails,
    Metric,
    PlannedStep,
    RolloutPlan,
    StepKind,
    StepLength,
)

_IN_BODY = ("pipeline", "cycle", "candidate", "run", "champion", "step", "reason", "frozen", "promote_next")
_AT_WORK = (RolloutState.RUNNING, RolloutState.AWAITING_APPROVAL)


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    """All columns of `rollouts`."""
    body = {name: getattr(rollout, name) for name in _IN_BODY}
    return {
        "rollout_id": rollout.rollout_id,
        "model": rollout.model,
        "at_work": rollout.model if rollout.state in _AT_WORK else None,
        "state": rollout.state.value,
        "applied": rollout.applied,
        "revision": rollout.revision,
        "body": {
            **body,
            "plan": plan_json(rollout.plan),
            "records": [_record_json(each) for each in rollout.records],
            "estimates": [[to_micros(e.time), e.users, e.value, e.low, e.high] for e in rollout.estimates],
        },
        "create_time": rollout.create_time,
        "update_time": rollout.update_time,
    }


def rollout_of(row: Mapping[Any, Any]) -> Rollout:
    """The roll-out of a row."""
    body = row["body"]
    return Rollout(
        rollout_id=row["rollout_id"],
        model=row["model"],
        plan=plan_of(body["plan"]),
        create_time=row["create_time"],
        update_time=row["update_time"],
        state=RolloutState(row["state"]),
        records=tuple(_record_of(each) for each in body["records"]),
        applied=row["applied"],
        revision=row["revision"],
        # Roll-outs of earlier releases have none.
        estimates=tuple(Estimate(from_micros(time), *rest) for time, *rest in body.get("estimates", ())),
        **{name: body[name] for name in _IN_BODY},
    )


def plan_json(plan: RolloutPlan) -> dict[str, Any]:
    """A plan as JSON."""
    comparison = {**asdict(plan.comparison), "metric": plan.comparison.metric.value}
    steps = [{"kind": s.kind.value, "share": s.share, "length": asdict(s.length)} for s in plan.steps]
    return {**asdict(plan), "steps": steps, "comparison": comparison}


def plan_of(value: Mapping[str, Any]) -> RolloutPlan:
    """The plan of its JSON."""
    comparison = value["comparison"]
    return RolloutPlan(
        steps=tuple(
            PlannedStep(StepKind(step["kind"]), step["share"], StepLength(**step["length"])) for step in value["steps"]
        ),
        comparison=Comparison(**{**comparison, "metric": Metric(comparison["metric"])}),
        guard_rails=GuardRails(**value["guard_rails"]),
        approve_first=value["approve_first"],
    )


def entry_row(entry: AuditEntry) -> dict[str, Any]:
    """All columns of `audit_entries`."""
    return {**asdict(entry), "facts": dict(entry.facts)}


def entry_of_row(row: Mapping[Any, Any]) -> AuditEntry:
    """The entry of a row."""
    return AuditEntry(**{name: row[name] for name in AuditEntry.__slots__})


def _record_json(record: StepRecord) -> dict[str, Any]:
    times = {"start_time": _micros(record.start_time), "end_time": _micros(record.end_time)}
    return {**times, "reason": record.reason, "etags": record.etags, "looks": record.looks}


def _record_of(value: Mapping[str, Any]) -> StepRecord:
    start, end = (value[name] for name in ("start_time", "end_time"))
    # Steps of earlier releases have no looks.
    looks = tuple(value.get("looks", ()))
    return StepRecord(_moment(start), _moment(end), value["reason"], tuple(value["etags"]), looks)


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else to_micros(moment)


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else from_micros(micros)
