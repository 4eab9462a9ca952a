"""Cycles whose pipeline has a roll-out plan, and what the plan in a file means."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from google.protobuf.json_format import ParseDict
from tidemill.pipeline.v1 import cycle_pb2

from services.kit.errors import InvalidArgumentError
from services.kit.grpc.validation import validate
from services.kit.ids import new_id
from services.pipeline.app.cycle_runner import CycleRunner
from services.pipeline.domain.cycle import Cycle, CycleState
from services.pipeline.domain.rollout_plan import CANARY_SHARES, Metric, StepKind, StepLength
from services.pipeline.entrypoints.rollout_mapping import fill_plan, plan_from
from tests.unit.pipeline.conftest import Harness
from tests.unit.pipeline.rollout_world import PLAN


async def ran(harness: Harness, name: str) -> Cycle:
    now = datetime.now(UTC)
    spec = replace(harness.spec, name=name, plan=PLAN)
    created = harness.store.create(Cycle(name, new_id(), spec, now, now))
    await CycleRunner(harness.dependencies(), created).run(asyncio.Event())
    found = harness.store.get(created.name)
    assert found is not None
    assert found.state is CycleState.SUCCEEDED
    return found


async def test_a_cycle_ends_when_the_rollout_of_its_version_begins(harness: Harness) -> None:
    first = await ran(harness, "first")
    # There was no version beside which it could be introduced.
    assert (harness.models.serves, harness.rollouts.begun) == (first.model_version, [])
    assert harness.models.promoted == [first.run]
    second = await ran(harness, "second")
    assert harness.models.beside == [second.model_version]
    assert harness.models.serves == first.model_version
    assert harness.rollouts.begun == [(second.name, second.model_version, second.run)]
    # The registry's champion is the one that serves: the roll-out decides about that, too.
    assert harness.models.promoted == [first.run]
    stage = second.stage("publish")
    assert stage.resources == (f"rollouts/{second.cycle_id}",)
    assert f"introduced by rollouts/{second.cycle_id}" in stage.summary
    assert second.spec.plan == PLAN
    harness.rollouts.at_work = stage.resources[0]
    third = await ran(harness, "third")
    assert third.stage("publish").summary.endswith(f"rollouts/{third.cycle_id} once {stage.resources[0]} has ended")


def rollout(**fields: object) -> cycle_pb2.Rollout:
    return ParseDict({"model": "models/m", **fields}, cycle_pb2.Rollout())


def test_a_plan_has_careful_defaults_and_survives_its_message() -> None:
    plan = plan_from(rollout(shadow={}, canary={}, ab={}))
    assert plan is not None
    assert [step.kind for step in plan.steps] == [StepKind.SHADOW, *[StepKind.CANARY] * 3, StepKind.AB]
    assert tuple(step.share for step in plan.steps) == (0.0, *CANARY_SHARES, 0.5)
    assert {step.length for step in plan.steps} == {StepLength(10, 200, 10_080)}
    assert (plan.comparison.metric, plan.comparison.margin, plan.comparison.alpha) == (Metric.ACCEPTED, 0.0, 0.05)
    assert (plan.guard_rails.max_error_rate, plan.guard_rails.max_latency_ratio) == (0.05, 2.0)
    message = cycle_pb2.Rollout(model="models/m")
    fill_plan(plan, message)
    assert plan_from(message) == plan


def test_zero_is_not_the_default_where_it_means_something() -> None:
    plan = plan_from(
        rollout(
            shadow={"min_minutes": 0, "min_answers": 0},
            canary={"steps": [{"share": 0.5, "until": {"max_minutes": 5}}]},
            guard_rails={"max_error_rate": 0, "max_latency_ms": 80},
            approve_first=True,
        )
    )
    assert plan is not None
    assert plan.steps[0].length == StepLength(0, 0, 10_080)
    assert (plan.steps[1].share, plan.steps[1].length.max_minutes) == (0.5, 5)
    assert (plan.guard_rails.max_error_rate, plan.guard_rails.max_refusal_rate) == (0, 0.05)
    assert plan.approve_first
    assert plan_from(rollout()) is None


@pytest.mark.parametrize("fields", [{"approve_first": True}, {"guard_rails": {"max_error_rate": 0.1}}])
def test_rules_without_a_step_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match="need a step"):
        validate(rollout(**fields))
