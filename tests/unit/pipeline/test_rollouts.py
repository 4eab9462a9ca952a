"""A new version on its way to all users: decisions, what overrules them, and what a kill leaves."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import delete, update
from sqlalchemy.exc import DatabaseError

from services.inference.domain.route import RouteEntry
from services.kit.errors import AbortedError, FailedPreconditionError, NotFoundError
from services.pipeline.adapters.capture_store import SqlCaptureStore
from services.pipeline.adapters.judge_store import SqlJudgeStore
from services.pipeline.adapters.rollout_tables import audit_entries, rollout_calls
from services.pipeline.app.rollout_ports import Outcome
from services.pipeline.app.rollout_runner import RolloutRunner
from services.pipeline.app.rollouts import Overrule, RolloutNow
from services.pipeline.domain.audit import entry
from services.pipeline.domain.capture import Capture
from services.pipeline.domain.judge import JudgeRules, JudgeSpec, ModelJudge
from services.pipeline.domain.rollout import Rollout, RolloutState
from services.pipeline.domain.rollout_plan import Comparison, GuardRails, Metric, PlannedStep, RolloutPlan, StepKind
from services.pipeline.engine.rollout_figures import RolloutFigures
from services.pipeline.entrypoints.rollout_mapping import rollout_to
from services.serving.domain.route import Role
from tests.conftest import OpenDatabase
from tests.unit.pipeline.rollout_world import CYCLE, MODEL, PLAN, SHORT, World, longer

ANNA = Overrule("key:anna", "I saw something.")
COMPARED = RolloutPlan((PlannedStep(StepKind.AB, 0.5, SHORT),))
BETTER, WORSE = {1: 0.5, 2: 0.9}, {1: 0.9, 2: 0.5}


@pytest.fixture
def world(open_service_database: OpenDatabase) -> World:
    return World(open_service_database("pipeline"))


def weights(world: World) -> dict[int, tuple[str, int]]:
    return {entry.number: (entry.role.value, entry.weight) for entry in world.now_entries()}


async def walk(world: World, likes: dict[int, float] | None, users: int = 700, steps: int = 3) -> None:
    """Lets users ask in each step until its time is over."""
    for _ in range(steps):
        await world.settle()
        world.ask(users, likes)
        world.clock.forward(6)
        await world.settle()


async def test_a_better_version_goes_through_every_step_and_is_promoted(world: World) -> None:
    name = await world.begin()
    await world.settle()
    assert weights(world) == {1: ("serving", 100), 2: ("shadow", 0)}
    world.ask(30)
    await world.settle()
    assert world.read(name).step == 0  # enough answers, but not enough time
    world.clock.forward(6)
    await world.settle()
    assert weights(world) == {1: ("serving", 8000), 2: ("canary", 2000)}
    canary = {slot for slot in range(10_000) if world.version_of(slot) == 2}
    world.ask(150, BETTER)
    world.clock.forward(6)
    await world.settle()
    assert weights(world) == {1: ("serving", 5000), 2: ("canary", 5000)}
    # Who had the new version keeps it.
    assert canary <= {slot for slot in range(10_000) if world.version_of(slot) == 2}
    world.ask(1500, BETTER)
    await world.settle()
    assert world.read(name).state is RolloutState.RUNNING
    world.clock.forward(6)
    await world.settle()
    rollout = world.read(name)
    assert (rollout.state, rollout.applied) == (RolloutState.PROMOTED, True)
    assert weights(world) == {2: ("serving", 10_000)}
    assert world.registry.promoted == ["runs/r"]
    assert [action for action, _ in world.trail()] == [
        "rollout.create",
        "rollout.begin",
        "rollout.step",
        "rollout.step",
        "rollout.promote",
    ]
    why = world.trail()[-1][1]
    assert why.startswith(f"{MODEL}/versions/2 is better than {MODEL}/versions/1: share of accepted answers 0.8")
    assert all(record.reason and record.end_time for record in rollout.records)
    # Single calls are dropped with the end, the counts stay.
    with world.engine.connect() as connection:
        assert connection.execute(rollout_calls.select()).all() == []
    assert world.metrics.calls(rollout).candidate.step.calls > 500


async def test_a_comparison_keeps_how_it_went(world: World) -> None:
    name = await world.begin()
    await walk(world, None, steps=2)
    sizes = []
    for _ in range(8):
        world.ask(120, {1: 0.7, 2: 0.75})
        world.clock.forward(0.5)
        await world.settle()
        sizes.append(len(world.read(name).estimates))
    estimates = world.read(name).estimates
    assert 2 <= len(estimates) <= 8
    # Without more judgements nothing is added.
    await world.settle()
    assert len(world.read(name).estimates) == sizes[-1]
    users = [each.users for each in estimates]
    assert all(later >= 1.05 * earlier for earlier, later in pairwise(users))
    assert all(each.low <= each.value <= each.high for each in estimates)
    assert estimates[-1].high - estimates[-1].low < estimates[0].high - estimates[0].low
    now = await world.rollouts().get(name)
    message = rollout_to(now)
    assert [each.judged_users for each in message.estimates] == users
    assert message.estimates[0].time.ToDatetime(UTC) == estimates[0].time
    assert not rollout_to(RolloutNow(now.rollout)).estimates


async def test_a_worse_version_is_rolled_back_with_its_figures_as_the_reason(world: World) -> None:
    name = await world.begin()
    await walk(world, WORSE, users=2500)
    rollout = world.read(name)
    assert rollout.state is RolloutState.ROLLED_BACK
    assert weights(world) == {1: ("serving", 8000)}
    assert f"{MODEL}/versions/2 is worse than {MODEL}/versions/1" in rollout.reason
    entry = world.audit.page(name, "", 1)[0]
    assert (entry.actor, entry.action, entry.facts["metric"]) == ("mesh", "rollout.rollback", "accepted")
    assert float(entry.facts["upper"]) < 0
    assert world.registry.promoted == []


@pytest.mark.parametrize(
    ("outcome", "why"),
    [(Outcome.FAILED, "failed; the guard-rail max_error_rate"), (Outcome.REFUSED, "the guard-rail max_refusal_rate")],
)
async def test_a_failing_version_is_rolled_back_out_of_the_shadow(world: World, outcome: Outcome, why: str) -> None:
    name = await world.begin()
    await world.settle()
    world.ask(10, outcome=lambda version: outcome if version == 2 else Outcome.ANSWERED)
    await world.settle()
    rollout = world.read(name)
    assert rollout.state is RolloutState.ROLLED_BACK
    assert why in rollout.reason
    assert weights(world) == {1: ("serving", 100)}


async def test_a_failing_serving_version_does_not_end_the_rollout(world: World) -> None:
    name = await world.begin()
    await world.settle()
    world.ask(50, outcome=lambda version: Outcome.FAILED if version == 1 else Outcome.ANSWERED)
    await world.settle()
    assert world.read(name).state is RolloutState.RUNNING


async def test_a_slow_version_is_rolled_back_by_the_serving_ones_latency(world: World) -> None:
    name = await world.begin()
    await world.settle()
    world.metrics.count([world.call(1) for _ in range(300)])
    world.metrics.count([world.call(2, shadow=True, latency_ms=45.0) for _ in range(50)])
    await world.settle()
    assert world.read(name).state is RolloutState.RUNNING  # within twice the time, or the least limit
    world.metrics.count([world.call(2, shadow=True, latency_ms=400.0) for _ in range(20)])
    await world.settle()
    rollout = world.read(name)
    assert rollout.state is RolloutState.ROLLED_BACK
    assert "20 of 70 answers" in rollout.reason
    assert "max_latency_ratio" in rollout.reason


async def test_users_who_are_not_divided_as_planned_end_the_comparison(world: World) -> None:
    name = await world.begin(COMPARED)
    await world.settle()
    # Three of four users of the new version never arrive.
    calls = [world.call(2, slot + 1) for slot in range(300)] + [world.call(1, slot + 1) for slot in range(5000, 6200)]
    world.metrics.count(calls)
    await world.settle()
    assert world.read(name).state is RolloutState.ROLLED_BACK
    assert "300 of 1,500 users" in world.read(name).reason
    assert "sample ratio mismatch" in world.read(name).reason


async def test_an_undecided_comparison_and_a_step_without_calls_roll_back(world: World) -> None:
    name = await world.begin(COMPARED)
    await world.settle()
    world.ask(500, {1: 0.7, 2: 0.7})
    world.clock.forward(601)
    await world.settle()
    assert "the comparison is undecided" in world.read(name).reason
    world.routing.change(world.routing.now.joined_by(3, Role.CANDIDATE, 0), "published")
    second = await world.begin(candidate=3, cycle=CYCLE[:-1] + "2")
    await world.settle()
    world.clock.forward(601)
    await world.settle()
    assert "3 gave 0 answers to copies of calls in the time allowed, not 20" in world.read(second).reason


async def test_a_comparison_with_a_maximum_is_looked_at_at_planned_times_only(world: World) -> None:
    name = await world.begin(longer(COMPARED, max_users=4000))
    await world.settle()
    world.clock.forward(6)
    seen = []
    for users in (700, 50, 200, 50):
        world.ask(users, {1: 0.5, 2: 0.55})
        await world.settle()
        seen.append(len(world.read(name).record.looks))
    # One look, as soon as a fifth of 4,000 users had judged.
    assert seen == [0, 0, 1, 1]
    assert world.read(name).state is RolloutState.RUNNING
    world.ask(1000, {1: 0.5, 2: 0.75})
    await world.settle()
    promoted = world.read(name)
    assert promoted.state is RolloutState.PROMOTED
    assert re.search(r"\d\.\d\d standard errors, where \d\.\d\d decide after 1,\d{3} of 4,000 users", promoted.reason)
    assert len(promoted.record.looks) == 2


async def test_a_comparison_that_is_undecided_at_its_maximum_rolls_back(world: World) -> None:
    name = await world.begin(longer(COMPARED, max_users=1000))
    await world.settle()
    world.clock.forward(6)
    world.ask(1100, {1: 0.7, 2: 0.7})
    await world.settle()
    rollout = world.read(name)
    assert rollout.state is RolloutState.ROLLED_BACK
    assert rollout.reason.startswith("The comparison has ended undecided: share of accepted answers")
    assert rollout.reason.endswith("versions/1 keeps serving.")
    assert rollout.record.looks == (1.0,)


async def test_too_few_users_of_one_version_at_the_maximum_decide_nothing(world: World) -> None:
    plan = RolloutPlan((PlannedStep(StepKind.AB, 0.05, SHORT),))
    name = await world.begin(longer(plan, max_users=400))
    await world.settle()
    world.clock.forward(6)
    world.ask(600, BETTER)
    await world.settle()
    assert world.read(name).state is RolloutState.ROLLED_BACK
    assert "fewer than 200 of them one of the versions" in world.read(name).reason


async def test_not_worse_by_the_margin_is_enough_where_the_plan_says_so(world: World) -> None:
    plan = replace(COMPARED, comparison=replace(COMPARED.comparison, margin=0.3))
    name = await world.begin(plan)
    await walk(world, {1: 0.8, 2: 0.8}, users=2500, steps=1)
    rollout = world.read(name)
    assert rollout.state is RolloutState.PROMOTED
    said = r"the advantage is [+-]0\.\d+, at least (-0\.\d+) with 95\.0% certainty; -0\.300 is allowed\.$"
    found = re.search(said, rollout.reason)
    assert found is not None, rollout.reason
    assert float(found.group(1)) > -0.3


async def test_the_first_version_of_a_model_and_one_that_serves_need_no_rollout(world: World) -> None:
    world.routing.change(world.routing.now.served_by(2), "by hand")
    name = await world.begin()
    await world.settle()
    assert world.read(name).state is RolloutState.PROMOTED
    assert weights(world) == {2: ("serving", 100)}


async def test_of_several_waiting_versions_the_newest_has_its_turn(world: World) -> None:
    for number in (3, 4):
        world.routing.change(world.routing.now.joined_by(number, Role.CANDIDATE, 0), "published")
    names = [await world.begin(candidate=number, cycle=f"{CYCLE[:-1]}{number}") for number in (2, 3, 4)]
    # A version that is being introduced is not introduced twice.
    assert await world.begin(candidate=4, cycle=f"{CYCLE[:-1]}9") == names[2]
    runner_up = world.rollouts()
    await world.settle()
    states = [world.read(name).state for name in names]
    assert states == [RolloutState.ROLLED_BACK, RolloutState.ROLLED_BACK, RolloutState.RUNNING]
    assert set(weights(world)) == {1, 4}
    (entry,) = [entry for entry in world.audit.page(names[0], "", 100) if entry.action == "rollout.supersede"]
    # The next one was superseded itself, so the newest is named.
    assert entry.reason == f"{MODEL}/versions/2 was never introduced: {MODEL}/versions/4 is newer, and waits too."
    assert (await runner_up.page(MODEL, "", 10))[0].name == names[2]


async def two_versions(world: World, plan: RolloutPlan = COMPARED) -> tuple[str, str]:
    """One that is compared, and a newer one that waits."""
    world.routing.change(world.routing.now.joined_by(3, Role.CANDIDATE, 0), "published")
    name = await world.begin(plan)
    await world.settle()
    newer = await world.begin(plan, candidate=3, cycle=f"{CYCLE[:-1]}3")
    await world.settle()
    return name, newer


async def test_a_comparison_that_can_hardly_be_won_ends_for_a_newer_version(world: World) -> None:
    name, newer = await two_versions(world)
    assert world.read(newer).reason == (
        f"{CYCLE[:-1]}3 made {MODEL}/versions/3, which waits: {name} introduces {MODEL}/versions/2 (step 1 of 1, ab)."
    )
    world.ask(1500, {1: 0.7, 2: 0.7})
    world.clock.forward(59)
    await world.settle()
    # A tenth of its longest time has not passed, so nothing is known of how many will judge.
    assert [world.read(each).state for each in (name, newer)] == [RolloutState.RUNNING, RolloutState.PENDING]
    world.clock.forward(150)
    await world.settle()
    older = world.read(name)
    assert (older.state, older.applied) == (RolloutState.ROLLED_BACK, True)
    said = (
        rf"{MODEL}/versions/3 is newer and waits, and {MODEL}/versions/2 will hardly be found better in the time left, "
        r"by -0\.\d{3} so far: 1,\d{3} users have judged in 209 of 600 minutes, and the chance is at most \d%. The "
        rf"comparison ends undecided; {MODEL}/versions/1 keeps serving\."
    )
    assert re.fullmatch(said, older.reason), older.reason
    (entry,) = [entry for entry in world.audit.page(name, "", 100) if entry.action == "rollout.supersede"]
    assert (entry.reason, entry.facts["newer"]) == (older.reason, f"{MODEL}/versions/3")
    assert world.read(newer).state is RolloutState.RUNNING
    assert set(weights(world)) == {1, 3}


async def test_a_comparison_that_no_one_judges_ends_for_a_newer_version_and_goes_on_without_one(world: World) -> None:
    name = await world.begin(COMPARED)
    await world.settle()
    world.ask(300)
    world.clock.forward(61)
    await world.settle()
    assert world.read(name).state is RolloutState.RUNNING
    world.routing.change(world.routing.now.joined_by(3, Role.CANDIDATE, 0), "published")
    newer = await world.begin(COMPARED, candidate=3, cycle=f"{CYCLE[:-1]}3")
    await world.settle()
    assert "in the time left: 0 users have judged in 61 of 600 minutes" in world.read(name).reason
    assert world.read(newer).state is RolloutState.RUNNING


async def test_a_comparison_that_may_be_won_goes_on_while_a_newer_version_waits(world: World) -> None:
    name, newer = await two_versions(world)
    world.ask(450, {1: 0.5, 2: 0.55})
    world.clock.forward(61)
    await world.settle()
    assert [world.read(each).state for each in (name, newer)] == [RolloutState.RUNNING, RolloutState.PENDING]
    world.ask(1500, BETTER)
    await world.settle()
    assert world.read(name).state is RolloutState.PROMOTED
    assert (world.read(newer).state, world.read(newer).champion) == (RolloutState.RUNNING, f"{MODEL}/versions/2")


async def test_what_a_person_holds_is_not_ended_for_a_newer_version(world: World) -> None:
    name, newer = await two_versions(world)
    await world.rollouts().freeze(name, ANNA)
    world.clock.forward(300)
    await world.settle()
    assert world.read(name).state is RolloutState.RUNNING
    assert f"(held; `tidemill rollout resume {name}` continues it)" in world.read(newer).reason


async def test_a_person_approves_each_step_first_where_the_plan_says_so(world: World) -> None:
    name = await world.begin(replace(PLAN, approve_first=True))
    rollouts = world.rollouts()
    with pytest.raises(FailedPreconditionError, match="proposes no step"):
        await rollouts.approve(name, ANNA)
    for step in range(3):
        await world.settle()
        world.ask(2000, BETTER)
        world.clock.forward(6)
        await world.settle()
        assert (world.read(name).state, world.read(name).step) == (RolloutState.AWAITING_APPROVAL, step)
        await rollouts.approve(name, ANNA)
    await world.settle()
    assert world.read(name).state is RolloutState.PROMOTED
    actors = [entry.actor for entry in world.audit.page(name, "", 100) if entry.action == "rollout.approve"]
    assert actors == ["key:anna"] * 3


async def test_a_version_that_fails_while_it_waits_for_approval_is_rolled_back(world: World) -> None:
    name = await world.begin(replace(PLAN, approve_first=True))
    await world.settle()
    world.ask(30)
    world.clock.forward(6)
    await world.settle()
    assert world.read(name).state is RolloutState.AWAITING_APPROVAL
    world.ask(30, outcome=lambda version: Outcome.FAILED if version == 2 else Outcome.ANSWERED)
    await world.settle()
    assert world.read(name).state is RolloutState.ROLLED_BACK


async def test_a_person_rolls_back_freezes_resumes_and_forces(world: World) -> None:
    name, rollouts = await world.begin(), world.rollouts()
    await world.settle()
    frozen = await rollouts.freeze(name, ANNA)
    assert (frozen.frozen, await rollouts.freeze(name, ANNA)) == (True, frozen)
    world.ask(500, BETTER)
    world.clock.forward(60)
    await world.settle()
    assert world.read(name).step == 0
    await rollouts.resume(name, ANNA)
    await world.settle()
    assert world.read(name).step == 1
    back = await rollouts.roll_back(name, ANNA)
    # The route is set when the call returns, before any look of the runner.
    assert (back.state, back.applied, back.reason) == (RolloutState.ROLLED_BACK, True, "I saw something.")
    assert weights(world) == {1: ("serving", 8000)}
    assert await rollouts.roll_back(name, ANNA) == back
    with pytest.raises(FailedPreconditionError, match="was rolled back"):
        await rollouts.force(name, ANNA)
    world.routing.change(world.routing.now.joined_by(3, Role.CANDIDATE, 0), "published")
    second = await world.begin(candidate=3, cycle=CYCLE[:-1] + "2")
    await world.settle()
    assert (await rollouts.force(second, ANNA)).state is RolloutState.PROMOTED
    assert weights(world) == {3: ("serving", 8000)}
    with pytest.raises(FailedPreconditionError, match="tidemill route rollback reviews"):
        await rollouts.roll_back(second, ANNA)
    by_anna = [entry.action for entry in reversed(world.audit.page("", "", 100)) if entry.actor == "key:anna"]
    assert by_anna == ["rollout.freeze", "rollout.resume", "rollout.rollback", "rollout.force"]
    with pytest.raises(NotFoundError):
        await rollouts.freeze("rollouts/no", ANNA)


@pytest.mark.parametrize(
    ("change", "state", "why"),
    [
        (lambda route: route.served_by(2), RolloutState.PROMOTED, "made the serving version by someone else"),
        (lambda route: route.without(2), RolloutState.ROLLED_BACK, "left the route"),
        (lambda route: route.having((), {}), RolloutState.ROLLED_BACK, "no version serves"),
        (lambda route: route.served_by(7), RolloutState.ROLLED_BACK, "version 7 serves"),
    ],
)
async def test_what_someone_else_did_to_the_route_ends_the_rollout(
    world: World, change: Callable[[Any], Any], state: RolloutState, why: str
) -> None:
    name = await world.begin(COMPARED)
    await world.settle()
    world.routing.change(change(world.routing.now), "by hand")
    await world.settle()
    assert world.read(name).state is state
    assert why in world.read(name).reason
    serving = world.routing.now.serving
    await world.settle()
    assert world.routing.now.serving == serving


async def test_weights_that_someone_else_set_hold_the_rollout_until_it_is_resumed(world: World) -> None:
    name = await world.begin(COMPARED)
    await world.settle()
    entries = [RouteEntry(1, Role.SERVING, 90), RouteEntry(2, Role.CANARY, 10)]
    world.routing.change(world.routing.now.set_to(entries, {}), "by hand")
    await world.settle()
    assert (world.read(name).frozen, weights(world)[2]) == (True, ("canary", 10))
    await world.rollouts().resume(name, ANNA)
    await world.settle()
    assert (world.read(name).frozen, weights(world)[2]) == (False, ("canary", 5000))


async def test_an_alias_that_someone_sets_changes_nothing_in_the_rollout(world: World) -> None:
    name = await world.begin(COMPARED)
    await world.settle()
    world.routing.change(world.routing.now.set_to(world.now_entries(), {"stable": 1}), "by hand")
    await world.settle()
    world.ask(1500, BETTER)
    world.clock.forward(6)
    await world.settle()
    assert world.read(name).state is RolloutState.PROMOTED


async def test_a_route_that_is_refused_for_good_ends_the_rollout(world: World) -> None:
    name = await world.begin()

    async def refused(*_: Any) -> str:
        raise FailedPreconditionError("version 2 is damaged")

    world.routing.set_route = refused  # type: ignore[method-assign,assignment]
    await world.settle()
    assert world.read(name).state is RolloutState.ROLLED_BACK
    assert "The route could not be set: version 2 is damaged" in world.read(name).reason


async def test_a_guard_rail_does_not_wait_for_figures_that_take_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await world.begin(COMPARED)
    go, figures = threading.Event(), world.metrics.figures

    def slow(rollout: Rollout) -> RolloutFigures:
        go.wait(60)
        return figures(rollout)

    monkeypatch.setattr(world.metrics, "figures", slow)
    runner = RolloutRunner(world.parts(), patience_s=0.0)
    while world.read(name).state is not RolloutState.RUNNING or await runner.step():
        await runner.step()
    world.ask(30, outcome=lambda version: Outcome.FAILED if version == 2 else Outcome.ANSWERED)
    while await runner.step():
        pass
    assert world.read(name).state is RolloutState.ROLLED_BACK
    go.set()


class _KilledError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize(
    ("likes", "end"),
    [
        (BETTER, RolloutState.PROMOTED),
        pytest.param(WORSE, RolloutState.ROLLED_BACK, marks=pytest.mark.slow),
    ],
)
async def test_a_rollout_resumes_after_a_kill_at_any_write_and_decides_nothing_twice(
    open_service_database: OpenDatabase, likes: dict[int, float], end: RolloutState
) -> None:
    plan = replace(PLAN, guard_rails=GuardRails(max_latency_ratio=0))
    engine = open_service_database("pipeline")
    whole = World(engine)
    writes = Killing(whole, None)
    await whole.begin(plan, cycle=f"pipelines/reviews/cycles/{'a' * 26}")
    await walk(whole, likes)
    assert writes.seen > 8
    expected = whole.trail()
    for kill_at in range(writes.seen):
        for written in (False, True):
            world = World(engine)
            world.random.seed(7)
            killing = Killing(world, (kill_at, written))
            name = await world.begin(plan, cycle=f"pipelines/reviews/cycles/{kill_at:025x}{int(written)}")
            for users in (150, 150, 700):  # as many as the shadow, the canary and the comparison need
                for again in range(2):
                    try:
                        await world.settle()
                        if not again:
                            world.ask(users, likes)
                            world.clock.forward(6)
                    except _KilledError:
                        await world.settle()
                        if not again:
                            world.ask(users, likes)
                            world.clock.forward(6)
            await world.settle()
            rollout = world.read(name)
            assert (rollout.state, rollout.applied) == (end, True), (kill_at, written)
            assert killing.seen > kill_at
            trail = [entry.action for entry in reversed(world.audit.page(name, "", 100))]
            assert trail == [action for action, _ in expected], (kill_at, written)
            assert len(world.routing.changes) == len(whole.routing.changes)
            serving = world.routing.now.serving
            assert serving is not None
            assert serving.number == (2 if end is RolloutState.PROMOTED else 1)


class Killing:
    """Ends the process at one of the writes of a roll-out or of its route: before it, or right after."""

    def __init__(self, world: World, at: tuple[int, bool] | None) -> None:
        self.seen, self._at = 0, at
        store, routing = world.store, world.routing
        update, set_route, promote = store.update, routing.set_route, routing.promote

        def updating(*arguments: Any) -> Rollout:
            self._before()
            found = update(*arguments)
            self._after()
            return found

        async def setting(*arguments: Any) -> str:
            self._before()
            etag = await set_route(*arguments)
            self._after()
            return etag

        async def promoting(*arguments: Any) -> str:
            self._before()
            etag = await promote(*arguments)
            self._after()
            return etag

        store.update = updating  # type: ignore[method-assign,assignment]
        routing.set_route, routing.promote = setting, promoting  # type: ignore[method-assign,assignment]

    def _before(self) -> None:
        if self._at == (self.seen, False):
            self.seen += 1
            raise _KilledError

    def _after(self) -> None:
        self.seen += 1
        if self._at == (self.seen - 1, True):
            raise _KilledError


async def test_a_person_and_the_mesh_do_not_decide_at_the_same_time(world: World) -> None:
    name = await world.begin()
    await world.settle()
    before = world.read(name)
    await world.rollouts().freeze(name, ANNA)
    with pytest.raises(AbortedError):
        world.store.update(before.stepped("too late", world.clock.now()))
    await asyncio.gather(*(world.rollouts().roll_back(name, ANNA) for _ in range(5)))
    assert [action for action, _ in world.trail()].count("rollout.rollback") == 1


async def test_the_audit_trail_cannot_be_changed(world: World) -> None:
    await world.begin()
    for change in (update(audit_entries).values(reason="nothing happened"), delete(audit_entries)):
        with pytest.raises(DatabaseError, match="the audit trail is never changed"), world.engine.begin() as connection:
            connection.execute(change)
    assert [action for action, _ in world.trail()] == ["rollout.create"]


@pytest.mark.parametrize("checked", [True, False])
async def test_a_judge_decides_only_while_people_have_checked_it(world: World, checked: bool) -> None:
    judge = world.judge = JudgeSpec("tone", JudgeRules(min_chars=1))
    captures = SqlCaptureStore(world.engine)
    captures.put_policy(MODEL, "reviews", Capture(judges=(judge,)), world.clock.now())
    named = ModelJudge(MODEL, "reviews", judge)
    store = SqlJudgeStore(world.engine)
    store.decide(named, checked, entry(world.clock.now(), "mesh", "judge.passed", named.name, "why"), world.clock.now())
    plan = RolloutPlan((PlannedStep(StepKind.AB, 0.5, SHORT),), Comparison(Metric.JUDGED, judge="tone"))
    name = await world.begin(plan)
    await world.settle()
    for _ in range(12):
        world.ask(100, {1: 0.3, 2: 0.9})
        world.clock.forward(5)
        await world.settle()
    if checked:
        assert world.read(name).state is RolloutState.PROMOTED
        assert "rating by the judge" in world.read(name).reason
        return
    # What it said for the candidate counts for nothing.
    assert world.read(name).state is RolloutState.RUNNING
    world.clock.forward(600)
    await world.settle()
    assert world.read(name).state is RolloutState.ROLLED_BACK
    assert "the judge tone is not checked against people" in world.read(name).reason


async def test_another_prompt_is_another_judge_and_decides_nothing_yet(world: World) -> None:
    judge = world.judge = JudgeSpec("tone", JudgeRules(min_chars=1))
    named = ModelJudge(MODEL, "reviews", judge)
    audit = entry(world.clock.now(), "mesh", "judge.passed", named.name, "why")
    SqlJudgeStore(world.engine).decide(named, True, audit, world.clock.now())
    plan = RolloutPlan((PlannedStep(StepKind.AB, 0.5, SHORT),), Comparison(Metric.JUDGED, judge="tone"))
    name = await world.begin(plan)
    await world.settle()
    world.ask(200, {1: 0.3, 2: 0.9})
    captures = SqlCaptureStore(world.engine)
    for rules, used in ((JudgeRules(min_chars=1), True), (JudgeRules(min_chars=2), False), (None, False)):
        judges = () if rules is None else (JudgeSpec("tone", rules),)
        captures.put_policy(MODEL, "reviews", Capture(judges=judges), world.clock.now())
        figures = world.metrics.figures(world.read(name))
        assert (figures.unusable == "") is used
        assert (figures.candidate.judged.count > 0) is used
