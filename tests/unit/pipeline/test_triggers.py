"""Cycles that start by themselves: each condition, each hold, and a crash at any step, by a clock that tests set."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.kit.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from services.kit.failure import Failure
from services.kit.schedules import check_schedule, due_after, last_due, zone_of
from services.pipeline.adapters.audit_store import SqlAuditStore
from services.pipeline.adapters.budget_gauges import PrometheusBudgetGauges
from services.pipeline.adapters.drift_gauges import PrometheusDriftGauges
from services.pipeline.adapters.drift_store import SnapshotTexts
from services.pipeline.adapters.rollout_store import SqlRolloutStore
from services.pipeline.app.capture import Captures
from services.pipeline.app.cycle_runner import CycleRunner
from services.pipeline.app.drift import DriftWatch
from services.pipeline.app.triggers import PipelineTriggers, TriggerView
from services.pipeline.domain.audit import MESH, entry
from services.pipeline.domain.capture import Capture, CapturedAnswer
from services.pipeline.domain.cycle import Cycle, CycleState, PipelineSpec, Stage, StageState
from services.pipeline.domain.feedback import Feedback
from services.pipeline.domain.learning import FeedbackUse
from services.pipeline.domain.rollout import Rollout, RolloutState
from services.pipeline.domain.triggers import Alert, QuietHours, Triggers
from tests.unit.pipeline.conftest import Harness
from tests.unit.pipeline.peers import DIGEST, FakeRecordCounts
from tests.unit.pipeline.rollout_world import PLAN

# A Monday.
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


class SetClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.time = NOON

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


class World:
    """Triggers over a real database, and cycles that end when the test says so."""

    def __init__(self, harness: Harness) -> None:
        self.harness, self.clock, self.records = harness, SetClock(), FakeRecordCounts()
        self.captures = Captures(harness.captured, harness.captures._files, self.clock)
        self.spec = replace(harness.spec, capture=Capture(), feedback=FeedbackUse())
        self.errors: list[Exception] = []
        self.number = 0
        self.restart()

    def restart(self) -> None:
        """A new process over the same database."""
        harness, self.registry = self.harness, CollectorRegistry()
        gauges = PrometheusDriftGauges(self.registry)
        texts = SnapshotTexts(harness.artifacts)
        rollouts, budgets = SqlRolloutStore(harness.store._engine, self.clock), PrometheusBudgetGauges(self.registry)
        self.drift = DriftWatch(harness.drift, texts, harness.triggers, harness.store, gauges, self.clock)
        self.triggers = PipelineTriggers(
            harness.triggers,
            harness.store,
            self.captures,
            self.records,
            self.start,
            self.drift,
            rollouts,
            budgets,
            self.clock,
        )

    async def start(self, spec: PipelineSpec, request_id: str, reasons: tuple[str, ...]) -> Cycle:
        if self.errors:
            raise self.errors.pop(0)
        known = self.harness.store.by_request(request_id)
        if known is not None:
            return known
        self.number += 1
        now = self.clock.now()
        cycle = Cycle(spec.name, f"c{self.number}", spec, now, now, request_id=request_id, reasons=reasons)
        return self.harness.store.create(cycle)

    async def put(self, **rules: Any) -> TriggerView:
        return await self.triggers.put(replace(self.spec, triggers=Triggers(**{"debounce_minutes": 0.0, **rules})))

    async def view(self) -> TriggerView:
        return await self.triggers.get(self.spec.name)

    async def hold(self) -> str:
        """The one reason why nothing starts."""
        view = await self.view()
        assert view.decision.reasons, "nothing is due"
        (hold,) = view.decision.holds
        return hold

    @property
    def audit(self) -> SqlAuditStore:
        return SqlAuditStore(self.harness.store._engine)

    def trail(self) -> list[tuple[str, str, str]]:
        """Who did what, and why; oldest first."""
        return [(item.actor, item.action, item.reason) for item in reversed(self.audit.page("", "", 100))]

    @property
    def cycles(self) -> list[Cycle]:
        """Newest first."""
        return list(self.harness.store.page(self.spec.name, "", 100))

    def end(self, state: CycleState = CycleState.SUCCEEDED, trained: timedelta = HOUR / 6) -> None:
        """The newest cycle collects, builds a data set, trains so long, and ends."""
        cycle, now = self.cycles[0], self.clock.now()
        stages = [
            Stage("collect", StageState.SUCCEEDED, start_time=now, end_time=now),
            Stage("train", StageState.SUCCEEDED, start_time=now, end_time=now + trained),
        ]
        for stage in stages:
            cycle = cycle.with_stage(stage)
        self.clock.time += trained
        ended = cycle.ended(state, self.clock.now(), Failure("X", "x") if state is CycleState.FAILED else None)
        self.harness.store.update(replace(ended, dataset_version={"digest": DIGEST}, announced=True))


@pytest.fixture
def world(harness: Harness) -> World:
    return World(harness)


async def test_enough_new_records_start_one_cycle_that_says_why(world: World) -> None:
    await world.put(new_records=3)
    world.records.arrivals = [1, 2]
    await world.triggers.step()
    assert world.cycles == []
    assert (await world.view()).decision.summary == "Nothing is due: 2 of 3 new records since the last cycle."
    world.records.arrivals = [1, 2, 5]
    for _ in range(3):
        await world.triggers.step()
    (cycle,) = world.cycles
    assert cycle.reasons == ("3 new records since the last cycle; 3 start one.",)
    assert await world.hold() == f"{cycle.name} is running."
    world.end()
    for _ in range(3):
        await world.triggers.step()
    # What it has learnt from does not count again.
    assert (await world.view()).decision.checks[0].count == 0
    world.records.arrivals += [6, 7, 8]
    await world.triggers.step()
    assert len(world.cycles) == 2
    assert [firing.cycle for firing in (await world.view()).firings] == [item.name for item in world.cycles]


async def test_records_that_come_while_a_cycle_trains_count_for_the_next(world: World) -> None:
    await world.put(new_records=2)
    world.records.arrivals = [1, 2]
    await world.triggers.step()
    cycle = world.cycles[0]
    world.harness.store.update(replace(cycle, dataset_version={"digest": DIGEST}))
    await world.triggers.step()
    world.records.arrivals += [3, 4]
    world.end()
    await world.triggers.step()
    assert len(world.cycles) == 2


def _correct(world: World, number: int, person: str) -> None:
    answer = CapturedAnswer(
        f"answers/a{number}", f"{world.spec.model}/versions/1", "generate", "p", "t", world.clock.now()
    )
    world.harness.captures.keep([answer])
    said = Feedback(f"f{number}", answer.name, 0.0, "better", person, world.clock.now())
    world.harness.feedback.record([said])


async def test_corrections_count_as_a_data_set_would_take_them(world: World) -> None:
    world.harness.captures.put_policy(world.spec.model, "headlines", Capture(keep_days=3650))
    world.spec = replace(world.spec, feedback=FeedbackUse(per_person_cap=2))
    await world.put(corrections=3)
    # One person alone cannot start a cycle, whatever they send.
    for number in range(9):
        _correct(world, number, "anna")
    await world.triggers.step()
    assert world.cycles == []
    assert (await world.view()).decision.checks[0].count == 2
    _correct(world, 9, "ben")
    await world.triggers.step()
    assert world.cycles[0].reasons == ("3 corrections since the last cycle; 3 start one.",)
    world.clock.time += HOUR
    world.end()
    await world.triggers.step()
    assert (await world.view()).decision.checks[0].count == 0


async def test_a_burst_is_one_cycle_after_the_debounce(world: World) -> None:
    await world.put(new_records=1, debounce_minutes=30)
    world.records.arrivals = [1]
    await world.triggers.step()
    assert await world.hold() == "It waits for more until 2026-03-02 12:30 UTC (debounce)."
    # It counts from the first, also over a restart.
    world.clock.time += HOUR / 3
    world.records.arrivals = [1, 2, 3]
    world.restart()
    await world.triggers.step()
    assert world.cycles == []
    world.clock.time += HOUR / 6
    await world.triggers.step()
    assert world.cycles[0].reasons == ("3 new records since the last cycle; 1 start one.",)


async def test_a_schedule_starts_a_cycle_at_its_time_and_missed_times_count_once(world: World) -> None:
    view = await world.put(schedule="0 3 * * *", time_zone="Europe/Berlin")
    assert view.decision.summary == "Nothing is due: The schedule 0 3 * * * is due at 2026-03-03 03:00 CET."
    assert view.next_schedule == datetime(2026, 3, 3, 2, tzinfo=UTC)
    await world.triggers.step()
    assert world.cycles == []
    # The service was unavailable for three nights.
    world.clock.time += timedelta(days=3)
    for _ in range(2):
        await world.triggers.step()
    (cycle,) = world.cycles
    assert cycle.reasons == ("The schedule 0 3 * * * was due at 2026-03-05 03:00 CET.",)
    world.end()
    for _ in range(2):
        await world.triggers.step()
    assert len(world.cycles) == 1
    # The same file again sets the same schedule, and loses no time of it.
    world.clock.time += timedelta(days=1)
    await world.put(schedule="0 3 * * *", time_zone="Europe/Berlin")
    await world.triggers.step()
    assert len(world.cycles) == 2


async def test_budgets_hold_cycles_back_over_24_hours(world: World) -> None:
    await world.put(new_records=1, max_cycles_per_day=2)
    for number in range(2):
        world.records.arrivals.append(number + 1)
        await world.triggers.step()
        world.end()
        await world.triggers.step()
    world.records.arrivals.append(9)
    await world.triggers.step()
    assert await world.hold() == (
        "2 cycles of 2 were started in 24 hours (budget); the next is possible at 2026-03-03 12:00 UTC."
    )
    used = {"pipeline": "headlines", "budget": "cycles"}
    assert world.registry.get_sample_value("trigger_budget_used", used) == 1.0
    world.clock.time = NOON + timedelta(hours=24)
    await world.triggers.step()
    assert len(world.cycles) == 3
    world.end(trained=3 * HOUR)
    await world.put(new_records=1, max_train_minutes=180)
    await world.triggers.step()
    world.records.arrivals.append(10)
    await world.triggers.step()
    # Ten minutes of the day before are still in the last 24 hours.
    assert await world.hold() == "180.0 of 180.0 minutes of training were used in 24 hours (budget)."
    assert world.registry.get_sample_value("trigger_budget_used", {**used, "budget": "train_minutes"}) == 1.0
    assert len(world.cycles) == 3


async def test_quiet_hours_and_a_pause_hold_cycles_back(world: World) -> None:
    await world.put(new_records=1, quiet_hours=(QuietHours("22:00", "14:00"),), time_zone="Europe/Berlin")
    world.records.arrivals = [1]
    await world.triggers.step()
    assert await world.hold() == "Quiet hours until 14:00 (Europe/Berlin)."
    world.clock.time += HOUR
    await world.triggers.pause(world.spec.name, True, "the label set changes")
    await world.triggers.step()
    assert await world.hold() == "It is paused: the label set changes."
    # A pause is over when someone ends it, not when a file is put again.
    await world.put(new_records=1)
    await world.triggers.step()
    assert world.cycles == []
    await world.triggers.pause(world.spec.name, False)
    await world.triggers.step()
    assert len(world.cycles) == 1


async def test_an_alert_starts_one_cycle_for_each_time_that_it_fires(world: World) -> None:
    await world.put(alerts=("QualityLow",))

    async def report(start: datetime, resolved: bool = False, name: str = "QualityLow") -> int:
        alert = Alert(name, f"f-{name}", start, "Ratings of reviews fell to 0.2.", resolved)
        return await world.triggers.report([(world.spec.name, alert)])

    async def why() -> str:
        return (await world.view()).decision.checks[0].why

    assert await why() == "The alert QualityLow does not fire."
    # What no trigger names, or of a pipeline without triggers, is left out.
    assert await report(NOON, name="DiskFull") == 0
    assert await world.triggers.report([("other", Alert("QualityLow", "f", NOON))]) == 0
    assert await report(NOON) == 1
    world.clock.time += HOUR
    await world.triggers.step()
    assert [cycle.reasons for cycle in world.cycles] == [
        ("The alert QualityLow fires since 2026-03-02 12:00 UTC: Ratings of reviews fell to 0.2.",)
    ]
    world.clock.time += HOUR
    world.end()
    # Alertmanager repeats it for as long as it fires.
    assert await report(NOON) == 1
    await world.triggers.step()
    assert len(world.cycles) == 1
    assert await why() == "The alert QualityLow fires since 2026-03-02 12:00 UTC, and a cycle has begun since."
    await report(NOON, resolved=True)
    assert await why() == "The alert QualityLow of 2026-03-02 12:00 UTC is resolved."
    # It fires again, and is resolved before a cycle could begin.
    again = world.clock.now()
    await report(again)
    await report(again, resolved=True)
    await report(NOON)  # late
    await world.triggers.step()
    assert len(world.cycles) == 1
    world.clock.time += HOUR
    await report(world.clock.now())
    await world.triggers.step()
    assert len(world.cycles) == 2


async def test_a_rollout_at_work_holds_cycles_back_unless_the_file_says_otherwise(world: World) -> None:
    await world.put(new_records=1)
    world.records.arrivals = [1]
    store = SqlRolloutStore(world.harness.store._engine, world.clock)
    model, now = world.spec.model, world.clock.now()
    candidate, cycle = f"{model}/versions/4", "pipelines/headlines/cycles/c0"
    draft = Rollout("r1", "headlines", cycle, model, candidate, "runs/r1", PLAN, now, now)
    rollout = store.create(draft, entry(now, MESH, "rollout.create", draft.name, "made"))
    stages = [
        (rollout, "pending"),
        (replace(rollout.begun(f"{model}/versions/3"), step=1), "step 2 of 3, canary"),
        (
            replace(rollout.begun(f"{model}/versions/3"), frozen=True),
            "held; `tidemill rollout resume rollouts/r1` continues it",
        ),
        (
            replace(rollout, state=RolloutState.AWAITING_APPROVAL),
            "waiting for `tidemill rollout approve rollouts/r1`",
        ),
    ]
    for number, (stage, where) in enumerate(stages):
        store.update(replace(stage, revision=number))
        await world.triggers.step()
        assert await world.hold() == (
            f"A roll-out is at work: rollouts/r1 introduces {candidate} ({where}); the next cycle starts after it."
        )
    await world.put(new_records=1, during_rollouts=True)
    assert (await world.view()).decision.fires
    await world.put(new_records=1)
    ended = replace(rollout, state=RolloutState.PROMOTED, revision=len(stages))
    store.update(ended)
    await world.triggers.step()
    assert len(world.cycles) == 1


@pytest.mark.parametrize(("state", "words"), [(CycleState.FAILED, "failed"), (CycleState.CANCELLED, "was cancelled")])
async def test_after_a_failure_or_a_cancellation_the_next_waits_and_counting_continues(
    world: World, state: CycleState, words: str
) -> None:
    await world.put(new_records=1)
    world.records.arrivals = [1]
    await world.triggers.step()
    world.end(state)
    await world.triggers.step()
    assert await world.hold() == f"{world.cycles[0].name} {words}; none is started before 2026-03-02 13:10 UTC."
    world.clock.time += HOUR
    await world.triggers.step()
    assert world.cycles[0].reasons == ("1 new records since the last cycle; 1 start one.",)
    assert len(world.cycles) == 2


async def test_what_triggers_do_and_who_pauses_them_is_in_the_audit_trail(world: World) -> None:
    await world.put(new_records=1)
    await world.triggers.pause(world.spec.name, True, "the label set changes", "key:k7")
    await world.triggers.pause(world.spec.name, True, "the label set changes", "key:k8")  # it is paused already
    await world.triggers.pause(world.spec.name, False, actor="key:k8")
    world.records.arrivals = [1]
    await world.triggers.step()
    world.end()
    world.records.arrivals = [1, 2]
    await world.triggers.step()
    world.records.arrivals = [1, 2, 3]
    world.errors = [FailedPreconditionError("it runs with another spec.")]
    await world.triggers.step()
    due = "1 new records since the last cycle; 1 start one."
    assert world.trail() == [
        ("key:k7", "trigger.pause", "the label set changes"),
        ("key:k8", "trigger.resume", "A person resumed it."),
        ("mesh", "trigger.fire", due),
        ("mesh", "cycle.start", due),
        ("mesh", "trigger.fire", due),
        ("mesh", "trigger.refuse", "No cycle could be started: it runs with another spec."),
    ]
    started = world.audit.page("pipelines/headlines", "", 100)[2]
    assert started.facts["cycle"] == world.cycles[0].name


class _KilledError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["note", "fire", "start", "started"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_kill_at_any_step_starts_one_cycle(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    await world.put(new_records=1)
    world.records.arrivals = [1]
    place: Any = world if step == "start" else world.harness.triggers
    real = getattr(place, step)

    def killed(*args: Any) -> Any:
        if when == "after":
            real(*args)
        raise _KilledError

    async def killed_start(*args: Any) -> Any:
        if when == "after":
            await real(*args)
        raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(place, step, killed_start if step == "start" else killed)
        world.restart()
        with pytest.raises(_KilledError):
            await world.triggers.step()
    world.restart()
    for _ in range(3):
        await world.triggers.step()
    (cycle,) = world.cycles
    (firing,) = (await world.view()).firings
    assert firing.cycle == cycle.name
    assert [action for _, action, _ in world.trail()] == ["trigger.fire", "cycle.start"]
    world.end()
    await world.triggers.step()
    await world.triggers.step()
    assert len(world.cycles) == 1


async def test_an_order_waits_while_a_peer_is_unavailable_and_is_carried_out_once(world: World) -> None:
    await world.put(new_records=1)
    world.records.arrivals = [1]
    world.errors = [UnavailableError("cleaning is unavailable.")] * 3
    for _ in range(3):
        await world.triggers.step()
        assert world.cycles == []
    assert await world.hold() == "A cycle that was ordered is running."
    await world.triggers.step()
    await world.triggers.step()
    assert len(world.cycles) == 1


async def test_an_order_that_cannot_be_carried_out_says_why_and_is_not_repeated_at_once(world: World) -> None:
    await world.put(new_records=1)
    world.records.arrivals = [1]
    world.errors = [FailedPreconditionError("it runs with another spec.")]
    for _ in range(3):
        await world.triggers.step()
    assert world.cycles == []
    assert (await world.view()).firings[0].error == "it runs with another spec."
    assert "it runs with another spec; none is started before" in await world.hold()


async def test_without_cleaning_counts_are_unknown_and_other_conditions_still_apply(world: World) -> None:
    await world.put(new_records=1, schedule="*/5 * * * *")
    world.records.arrivals, world.records.away = [1], True
    world.clock.time += HOUR
    await world.triggers.step()
    assert world.cycles[0].reasons == ("The schedule */5 * * * * was due at 2026-03-02 13:00 UTC.",)
    assert "cleaning does not answer" in (await world.view()).decision.checks[0].why


async def test_a_cycle_sets_the_triggers_of_its_file_and_one_without_ends_them(harness: Harness, world: World) -> None:
    _, cycles = harness.scheduler()
    spec = replace(world.spec, triggers=Triggers(new_records=5))
    first = await cycles.create(spec, "", "")
    assert (await world.view()).trigger.spec == spec
    harness.store.update(first.ended(CycleState.SUCCEEDED, NOON))
    # A cycle of triggers changes nothing of them.
    second = await cycles.create(replace(spec, triggers=None), "r", "", ("due.",))
    assert (await world.view()).trigger.spec == spec
    harness.store.update(second.ended(CycleState.SUCCEEDED, NOON))
    await cycles.create(replace(spec, triggers=None), "", "")
    with pytest.raises(NotFoundError, match="pipelines/headlines"):
        await world.view()


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"schedule": "0 3 * *"}, "spec.triggers.schedule: '0 3 * *' is not a cron expression of five fields"),
        ({"schedule": "0 25 * * *"}, "spec.triggers.schedule: '0 25 * * *' is not a valid cron expression: Bad hour"),
        ({"schedule": "0 3 30 2 *"}, "spec.triggers.schedule: '0 3 30 2 *' is not a valid cron expression"),
        ({"schedule": "0 3 * * *", "time_zone": "Mars/Olympus"}, "spec.triggers.time_zone: 'Mars/Olympus' is not"),
    ],
)
async def test_triggers_that_cannot_work_are_refused(harness: Harness, world: World, rules: Any, said: str) -> None:
    _, cycles = harness.scheduler()
    spec = replace(world.spec, triggers=Triggers(**rules))
    refusals: list[Callable[[], Awaitable[object]]] = [lambda: world.put(**rules), lambda: cycles.create(spec, "", "")]
    for refused in refusals:
        with pytest.raises(InvalidArgumentError) as caught:
            await refused()
        assert caught.value.message.startswith(said)


async def _run(harness: Harness, spec: PipelineSpec, *reasons: str) -> Cycle:
    """A cycle, run to its end."""
    _, cycles = harness.scheduler()
    cycle = await cycles.create(spec, "", "", reasons)
    await CycleRunner(harness.dependencies(), cycle).run(asyncio.Event())
    found = harness.store.get(cycle.name)
    assert found is not None
    return found


async def test_a_triggered_cycle_whose_data_did_not_change_trains_nothing(harness: Harness) -> None:
    first = await _run(harness, harness.spec, "due.")
    assert first.state is CycleState.SUCCEEDED
    second = await _run(harness, replace(harness.spec, triggers=Triggers(new_records=1)), "due.")
    assert second.state is CycleState.UNCHANGED
    assert [stage.state for stage in second.stages] == [StageState.SUCCEEDED] * 2 + [StageState.SKIPPED] * 3
    assert len(harness.runs.orders) == 1
    assert harness.announcer.ended[-1].state is CycleState.UNCHANGED
    # A person's order, another training and other data are run.
    assert (await _run(harness, harness.spec)).state is CycleState.SUCCEEDED
    changed = replace(harness.spec, training={**harness.spec.training, "base_model": "other"})
    assert (await _run(harness, changed, "due.")).state is CycleState.SUCCEEDED
    harness.versions.end = {**harness.versions.end, "digest": "e" * 64}
    assert (await _run(harness, changed, "due.")).state is CycleState.SUCCEEDED


def test_times_of_a_schedule_are_right_where_clocks_change() -> None:
    berlin = zone_of("Europe/Berlin")
    # 02:30 does not exist on 2026-03-29, and exists twice on 2026-10-25.
    night = datetime(2026, 3, 28, 12, tzinfo=UTC)
    spring = due_after("30 2 * * *", night, berlin)
    assert spring == datetime(2026, 3, 29, 1, tzinfo=UTC)
    autumn = datetime(2026, 10, 24, 12, tzinfo=UTC)
    first = due_after("30 2 * * *", autumn, berlin)
    assert first is not None
    assert due_after("30 2 * * *", first, berlin) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)
    assert last_due("0 12 * * *", NOON - HOUR, NOON, UTC) == NOON
    assert last_due("0 12 * * *", NOON, NOON + HOUR, UTC) is None
    check_schedule("*/15 9-17 * * MON-FRI")


def test_quiet_hours_may_go_over_midnight() -> None:
    night, day = QuietHours("22:00", "06:00"), QuietHours("08:00", "18:00")
    inside = [(night, "22:00"), (night, "00:00"), (night, "05:59"), (day, "08:00"), (day, "17:59")]
    outside = [(night, "06:00"), (night, "21:59"), (day, "18:00"), (day, "07:59")]
    assert all(hours.contains(time.fromisoformat(moment)) for hours, moment in inside)
    assert not any(hours.contains(time.fromisoformat(moment)) for hours, moment in outside)
