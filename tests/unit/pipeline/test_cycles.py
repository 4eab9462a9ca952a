from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from services.kit.errors import (
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    bus_away,
    database_damaged,
    disk_full,
    snapshot_damaged,
)
from services.kit.failure import Failure
from services.kit.ids import new_id
from services.pipeline.app.cycle_runner import CycleRunner
from services.pipeline.app.cycles import Cycles
from services.pipeline.domain.cycle import Cycle, CycleState, PipelineSpec, StageState
from services.pipeline.entrypoints.mapping import cycle_to
from tests.unit.pipeline.conftest import Harness
from tests.unit.pipeline.peers import DIGEST, report
from tests.waiting import eventually, eventually_is


@asynccontextmanager
async def service(harness: Harness) -> AsyncIterator[Cycles]:
    """One process of the service; leaving the block is its end, wherever its cycles stand."""
    scheduler, cycles = harness.scheduler()
    task = asyncio.create_task(scheduler.run())
    try:
        yield cycles
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(cycles: Cycles, name: str, reached: Callable[[Cycle], bool]) -> Cycle:
    return await eventually_is(lambda: cycles.get(name), reached)


async def ended(cycles: Cycles, name: str) -> Cycle:
    return await until(cycles, name, lambda cycle: cycle.state.final and cycle.announced)


async def test_a_cycle_goes_through_all_stages_and_publishes_the_best_build(harness: Harness) -> None:
    async with service(harness) as cycles:
        cycle = await ended(cycles, (await cycles.create(harness.spec, "", "")).name)
    assert cycle.state is CycleState.SUCCEEDED
    assert [stage.state for stage in cycle.stages] == [StageState.SUCCEEDED] * 5
    assert cycle.model_version == "models/headlines/versions/1"
    assert list(harness.models.published.values()) == ["file:///builds/int8"]
    assert harness.models.promoted == [cycle.run] == ["runs/1"]
    assert harness.announcer.ended[0].name == cycle.name
    assert cycle.stage("collect").summary == "10 records from bbc, 2 repeats, 1 refused, 1 changed, 2 gone"
    assert cycle.stage("train").summary.endswith("; precision: fp32, this cpu has no bf16")
    # What each peer was asked for.
    assert harness.imports.orders == [{"spec": harness.spec.sources[0]}]
    assert harness.datasets.put_specs[0] == ("datasets/d", {"operators": [{"name": "exact_dedup"}], "sources": ["bbc"]})
    assert harness.versions.orders[0]["awaited_imports"] == [
        {"name": "imports/1", "record_count": 10, "withdrawn_count": 2, "changed_count": 1}
    ]
    reference = {"name": "datasets/d/versions/1", "uri": "file:///d", "digest": DIGEST}
    assert harness.runs.orders == [{"spec": {**harness.spec.training, "dataset": reference}}]


async def test_a_cycle_survives_restarts_in_every_stage_and_starts_nothing_twice(harness: Harness) -> None:
    workers = {"collect": harness.imports, "clean": harness.versions, "train": harness.runs}
    for worker in workers.values():
        worker.release.clear()
    async with service(harness) as cycles:
        name = (await cycles.create(harness.spec, "", "")).name
    for stage, worker in workers.items():
        async with service(harness) as cycles:
            await until(cycles, name, lambda c, stage=stage: c.stage(stage).state is StageState.RUNNING)  # type: ignore[misc]
            await until(cycles, name, lambda c, stage=stage: bool(c.stage(stage).resources))  # type: ignore[misc]
        worker.release.set()
    async with service(harness) as cycles:
        cycle = await ended(cycles, name)
    assert cycle.state is CycleState.SUCCEEDED
    assert [len(worker.started) for worker in workers.values()] == [1, 1, 1]
    assert len(harness.models.published) == 1


class _KilledError(BaseException):
    """The process ends here."""


async def test_a_cycle_resumes_after_a_kill_at_any_step_and_does_nothing_twice(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.pipeline.app.cycle_runner._PROGRESS_EVERY_S", 0.0)
    update, steps = harness.store.update, 0

    def counting(cycle: Cycle) -> None:
        nonlocal steps
        steps += 1
        update(cycle)

    async def run_cycle(name: str) -> None:
        cycle = harness.store.get(name)
        assert cycle is not None
        await CycleRunner(harness.dependencies(), cycle).run(asyncio.Event())

    def created(loop: str) -> str:
        now = datetime.now(UTC)
        return harness.store.create(Cycle(loop, new_id(), replace(harness.spec, name=loop), now, now)).name

    monkeypatch.setattr(harness.store, "update", counting)
    await run_cycle(created("whole"))
    assert steps > 15
    for kill_at in range(steps):
        for written in (False, True):
            name, left = created(f"killed-{kill_at}-{written}".lower()), kill_at

            def killing(cycle: Cycle, *, written: bool = written) -> None:
                nonlocal left
                if left == 0 and not written:
                    raise _KilledError
                update(cycle)
                if left == 0:
                    raise _KilledError
                left -= 1

            monkeypatch.setattr(harness.store, "update", killing)
            with pytest.raises(_KilledError):
                await run_cycle(name)
            monkeypatch.setattr(harness.store, "update", update)
            await run_cycle(name)
            cycle = harness.store.get(name)
            assert cycle is not None
            assert cycle.state is CycleState.SUCCEEDED, (kill_at, written, cycle.failure)
            assert cycle.announced
            assert [stage.state for stage in cycle.stages] == [StageState.SUCCEEDED] * 5
            assert [len(stage.resources) for stage in cycle.stages] == [1, 1, 1, 0, 0]
            for asked in (
                harness.imports.started,
                harness.versions.started,
                harness.runs.started,
                harness.models.published,
            ):
                assert sum(request.startswith(cycle.cycle_id) for request in asked) == 1
            assert {e.state for e in harness.announcer.ended if e.name == name} == {CycleState.SUCCEEDED}


async def test_an_ended_cycle_is_reported_after_a_restart_if_it_was_not(harness: Harness) -> None:
    async with service(harness) as cycles:
        cycle = await ended(cycles, (await cycles.create(harness.spec, "", "")).name)
    harness.store.update(replace(cycle, announced=False))
    async with service(harness) as cycles:
        await ended(cycles, cycle.name)
    assert [event.name for event in harness.announcer.ended] == [cycle.name, cycle.name]


async def test_peers_that_are_unavailable_are_waited_for(harness: Harness) -> None:
    away = UnavailableError("The peer does not answer.", metadata={"peer": "training"})
    harness.imports.errors = [away, away]
    harness.runs.errors = [away]
    harness.models.errors = [away, away]
    async with service(harness) as cycles:
        cycle = await ended(cycles, (await cycles.create(harness.spec, "", "")).name)
    assert cycle.state is CycleState.SUCCEEDED


async def test_a_peer_that_is_unavailable_for_long_is_named_in_the_cycle(harness: Harness) -> None:
    harness.runs.errors = [UnavailableError("The peer does not answer.", metadata={"peer": "training"})] * 1_000_000
    async with service(harness) as cycles:
        name = (await cycles.create(harness.spec, "", "")).name
        cycle = await until(cycles, name, lambda c: c.stage("train").progress is not None)
        assert cycle.stage("train").progress == {
            "phase": "waits for training",
            "waiting": {"reason": "UNAVAILABLE", "message": "The peer does not answer."},
        }
        harness.runs.errors.clear()
        assert (await ended(cycles, name)).state is CycleState.SUCCEEDED


async def test_a_cycle_says_why_it_waits_and_what_to_do(harness: Harness) -> None:
    for error, reason, remedy in (
        (bus_away("No Kafka broker answers at 127.0.0.1:9092"), "BUS_AWAY", "`tidemill status` shows whether Kafka"),
        (disk_full("/state/training.sqlite"), "DISK_FULL", "Free some space"),
    ):
        harness.runs.errors = [error] * 1_000_000
        async with service(harness) as cycles:
            name = (await cycles.create(harness.spec, "", "")).name
            cycle = await until(cycles, name, lambda c: c.stage("train").progress is not None)
            stage = next(stage for stage in cycle_to(cycle).stages if stage.name == "train")
            assert stage.progress.waiting.reason == reason
            assert remedy in stage.progress.waiting.message
            harness.runs.errors.clear()
            assert (await ended(cycles, name)).state is CycleState.SUCCEEDED


async def test_damage_fails_the_cycle_with_the_part_the_cause_and_what_to_do(harness: Harness) -> None:
    database = database_damaged("sqlite:////state/db/training.sqlite", "database disk image is malformed")
    snapshot = snapshot_damaged("file:///state/artifacts/datasets/d/1", "train.parquet", "its digest differs")
    for error, reason, words in (
        (database, "DATABASE_DAMAGED", ("training.sqlite", "malformed", "restore the file from a backup")),
        (snapshot, "SNAPSHOT_DAMAGED", ("train.parquet", "its digest differs", "Restore the file from a backup")),
    ):
        harness.runs.errors = [error]
        async with service(harness) as cycles:
            cycle = await ended(cycles, (await cycles.create(harness.spec, "", "")).name)
        assert cycle.state is CycleState.FAILED
        assert cycle.failure is not None
        assert cycle.failure.reason == reason
        for word in words:
            assert word in cycle.failure.message
            assert word in cycle.stage("train").summary


async def test_failed_work_fails_the_cycle_with_its_reason(harness: Harness) -> None:
    harness.runs.failure = Failure("WORKER_CRASHED", "The worker ended 5 times.", {"run": "runs/1"})
    async with service(harness) as cycles:
        cycle = await ended(cycles, (await cycles.create(harness.spec, "", "")).name)
    assert cycle.state is CycleState.FAILED
    assert cycle.failure == harness.runs.failure
    assert [stage.state.value for stage in cycle.stages] == ["succeeded", "succeeded", "failed", "skipped", "skipped"]
    assert cycle.stage("train").summary == "The worker ended 5 times."
    assert not harness.models.published


async def test_records_that_the_bus_has_lost_are_pulled_again_once(harness: Harness) -> None:
    lost = Failure("RECORDS_LOST", "Records were lost.", {"imports/1": "152 of 500", "lost_messages": "348"})
    harness.versions.failures["datasets/d/versions/1"] = lost
    async with service(harness) as cycles:
        cycle = await ended(cycles, (await cycles.create(harness.spec, "", "")).name)
    assert cycle.state is CycleState.SUCCEEDED
    assert harness.imports.orders == [{"spec": harness.spec.sources[0], **again} for again in ({}, {"resend": True})]
    awaited = [order["awaited_imports"][0]["name"] for order in harness.versions.orders]
    assert awaited == ["imports/1", "imports/2"]
    assert cycle.stage("clean").resources == ("datasets/d/versions/1", "imports/2", "datasets/d/versions/2")
    assert cycle.stage("clean").summary.endswith("; the bus had lost 348 messages, so bbc was pulled again")


async def test_records_that_are_lost_again_fail_the_cycle_with_what_to_do(harness: Harness) -> None:
    harness.versions.failure = Failure("RECORDS_LOST", "Records were lost.", {"imports/1": "152 of 500"})
    async with service(harness) as cycles:
        cycle = await ended(cycles, (await cycles.create(harness.spec, "", "")).name)
    assert cycle.failure == harness.versions.failure
    assert len(harness.imports.orders) == len(harness.versions.orders) == 2


def collected(harness: Harness, **collect: object) -> PipelineSpec:
    return replace(harness.spec, sources=({**harness.spec.sources[0], "collect": collect},))


async def test_a_cycle_imports_nothing_of_what_is_pushed_and_awaits_it(harness: Harness) -> None:
    pulled, pushed = harness.spec.sources[0], {"source": "tickets", "pushed": {}}
    async with service(harness) as cycles:
        both = await ended(cycles, (await cycles.create(replace(harness.spec, sources=(pulled, pushed)), "", "")).name)
        assert both.state is CycleState.SUCCEEDED, both.failure
        assert both.stage("collect").summary.endswith("1 refused, 1 changed, 2 gone; and what was pushed to tickets")
        # Declared, so that its policy holds for what others push.
        assert harness.sources.declared == {harness.spec.name: [pushed]}
        put = harness.datasets.put_specs[-1][1]
        assert (put["sources"], put["pushed_sources"]) == (["bbc", "tickets"], ["tickets"])
        only = await ended(cycles, (await cycles.create(replace(harness.spec, sources=(pushed,)), "", "")).name)
    assert only.state is CycleState.SUCCEEDED, only.failure
    assert only.stage("collect").summary == "what was pushed to tickets"
    assert not only.stage("collect").reused
    assert harness.imports.orders == [{"spec": pulled}]


async def test_a_cycle_declares_the_sources_that_its_file_wants_collected(harness: Harness) -> None:
    plain, spec = harness.spec, collected(harness, every_minutes=30.0)
    async with service(harness) as cycles:
        await ended(cycles, (await cycles.create(spec, "", "")).name)
        assert harness.sources.declared == {plain.name: [spec.sources[0]]}
        # Its own import is one without times.
        assert harness.imports.orders == [{"spec": plain.sources[0]}]
        # What a person deleted since is not declared again by a cycle that triggers start.
        harness.sources.declared.clear()
        await ended(cycles, (await cycles.create(spec, "", "", ("It is time.",))).name)
        assert harness.sources.declared == {}
        await ended(cycles, (await cycles.create(plain, "", "")).name)
        assert harness.sources.declared == {plain.name: []}


async def test_a_source_of_another_pipeline_fails_the_cycle_and_an_unavailable_ingest_does_not(
    harness: Harness,
) -> None:
    spec = collected(harness, every_minutes=30.0)
    async with service(harness) as cycles:
        harness.sources.error = FailedPreconditionError("Another one's.", reason="SOURCE_OF_ANOTHER_PIPELINE")
        cycle = await ended(cycles, (await cycles.create(spec, "", "")).name)
        assert cycle.failure is not None
        assert (cycle.failure.reason, harness.imports.orders) == ("SOURCE_OF_ANOTHER_PIPELINE", [])
        harness.sources.error = UnavailableError("Ingest does not answer.")
        assert (await ended(cycles, (await cycles.create(spec, "", "")).name)).state is CycleState.SUCCEEDED


@pytest.mark.parametrize(
    ("collect", "field"),
    [({"schedule": "61 * * * *"}, "schedule"), ({"schedule": "0 3 * * *", "time_zone": "Mars"}, "time_zone")],
)
async def test_a_source_that_is_never_due_is_refused_before_the_cycle(
    harness: Harness, collect: dict[str, object], field: str
) -> None:
    async with service(harness) as cycles:
        with pytest.raises(InvalidArgumentError) as caught:
            await cycles.create(collected(harness, **collect), "", "")
    assert [violation.field for violation in caught.value.violations] == [f"spec.sources[0].collect.{field}"]


async def test_a_peers_error_that_is_not_retryable_fails_the_cycle(harness: Harness) -> None:
    harness.versions.errors = [InvalidArgumentError("No such operator.", reason="RECIPE", metadata={"operator": "x"})]
    async with service(harness) as cycles:
        cycle = await ended(cycles, (await cycles.create(harness.spec, "", "")).name)
    assert cycle.failure == Failure("RECIPE", "No such operator.", {"operator": "x"})


async def test_a_defect_of_ours_fails_the_cycle_and_not_the_service(harness: Harness) -> None:
    harness.runs.end = {"report": {}}
    async with service(harness) as cycles:
        cycle = await ended(cycles, (await cycles.create(harness.spec, "", "")).name)
        assert cycle.failure is not None
        assert cycle.failure.reason == "UNEXPECTED"
        assert (await cycles.get(cycle.name)).state is CycleState.FAILED


async def test_a_cycle_that_cannot_be_stored_does_not_stop_others_and_continues_when_it_can(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.pipeline.app.cycle_scheduler._RETRY_S", 0.05)
    update, broken = harness.store.update, ["a"]

    def failing(cycle: Cycle) -> None:
        if cycle.pipeline in broken:
            raise RuntimeError("a defect")
        update(cycle)

    monkeypatch.setattr(harness.store, "update", failing)
    async with service(harness) as cycles:
        first = (await cycles.create(replace(harness.spec, name="a"), "", "")).name
        second = (await cycles.create(replace(harness.spec, name="b"), "", "")).name
        assert (await ended(cycles, second)).state is CycleState.SUCCEEDED
        assert (await cycles.get(first)).state is CycleState.RUNNING
        broken.clear()
        assert (await ended(cycles, first)).state is CycleState.SUCCEEDED


async def test_a_data_set_without_hold_out_fails_before_training(harness: Harness) -> None:
    harness.versions.end = {**harness.versions.end, "holdout_count": "0"}
    async with service(harness) as cycles:
        cycle = await ended(cycles, (await cycles.create(harness.spec, "", "")).name)
    assert cycle.failure is not None
    assert cycle.failure.reason == "EMPTY_DATASET"
    assert not harness.runs.orders


async def test_no_build_that_passes_rejects_the_cycle_and_publishes_nothing(harness: Harness) -> None:
    harness.runs.end = {"report": report(fp32=0.1, int8=0.1)}
    async with service(harness) as cycles:
        cycle = await ended(cycles, (await cycles.create(harness.spec, "", "")).name)
    assert cycle.state is CycleState.REJECTED
    assert cycle.failure is None
    assert [stage.state.value for stage in cycle.stages][-2:] == ["failed", "skipped"]
    assert len(cycle.verdicts) == 2
    assert not harness.models.published


async def test_cancelling_stops_the_work_that_runs(harness: Harness) -> None:
    harness.runs.release.clear()
    async with service(harness) as cycles:
        name = (await cycles.create(harness.spec, "", "")).name
        await until(cycles, name, lambda c: bool(c.stage("train").resources))
        await cycles.cancel(name)
        cycle = await ended(cycles, name)
        assert (await cycles.cancel(name)).state is CycleState.CANCELLED
    assert cycle.state is CycleState.CANCELLED
    assert harness.runs.cancelled == ["runs/1"]
    assert cycle.stage("clean").state is StageState.SUCCEEDED
    assert cycle.stage("train").state is StageState.SKIPPED


async def test_a_cancel_that_came_while_the_service_was_down_counts(harness: Harness) -> None:
    harness.runs.release.clear()
    async with service(harness) as cycles:
        name = (await cycles.create(harness.spec, "", "")).name
        await until(cycles, name, lambda c: bool(c.stage("train").resources))
    harness.store.request_cancel(name)
    async with service(harness) as cycles:
        assert (await ended(cycles, name)).state is CycleState.CANCELLED


async def test_work_that_is_just_being_ordered_is_cancelled_too(harness: Harness) -> None:
    harness.runs.answering.clear()
    async with service(harness) as cycles:
        name = (await cycles.create(harness.spec, "", "")).name
        await eventually(lambda: harness.runs.started, "the run")
        await cycles.cancel(name)
        await asyncio.sleep(0.05)
        harness.runs.answering.set()
        cycle = await ended(cycles, name)
    assert cycle.state is CycleState.CANCELLED
    assert cycle.stage("train").resources == ("runs/1",)
    assert harness.runs.cancelled == ["runs/1"]


async def test_work_at_a_peer_that_is_unavailable_is_cancelled_when_it_is_back_also_after_a_restart(
    harness: Harness,
) -> None:
    harness.runs.release.clear()
    harness.runs.cancel_errors = [UnavailableError("away")] * 1_000_000
    async with service(harness) as cycles:
        name = (await cycles.create(harness.spec, "", "")).name
        await until(cycles, name, lambda c: bool(c.stage("train").resources))
        await cycles.cancel(name)
        # It does not hold up the end, nor the next cycle.
        await until(cycles, name, lambda c: c.state is CycleState.CANCELLED)
        assert (await cycles.create(harness.spec, "", "")).name != name
    assert not harness.runs.cancelled
    async with service(harness) as cycles:
        await asyncio.sleep(0.05)
        assert not harness.runs.cancelled
        harness.runs.cancel_errors.clear()
        await ended(cycles, name)
    assert harness.runs.cancelled == ["runs/1"]


async def test_work_that_ended_meanwhile_does_not_delay_a_cancel(harness: Harness) -> None:
    harness.runs.release.clear()
    harness.runs.cancel_errors = [FailedPreconditionError("It ended.")]
    async with service(harness) as cycles:
        name = (await cycles.create(harness.spec, "", "")).name
        await until(cycles, name, lambda c: bool(c.stage("train").resources))
        await cycles.cancel(name)
        assert (await ended(cycles, name)).state is CycleState.CANCELLED


async def test_a_cancel_between_training_and_publication_publishes_nothing(harness: Harness) -> None:
    scheduler, cycles = harness.scheduler()
    harness.tracing.after["train"] = scheduler.cancel
    task = asyncio.create_task(scheduler.run())
    cycle = await ended(cycles, (await cycles.create(harness.spec, "", "")).name)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert cycle.state is CycleState.CANCELLED
    assert [stage.state.value for stage in cycle.stages] == ["succeeded"] * 3 + ["skipped"] * 2
    assert not harness.models.published


async def test_a_cycle_that_waits_for_its_publisher_can_be_cancelled(harness: Harness) -> None:
    harness.models.errors = [UnavailableError("away")] * 100_000
    async with service(harness) as cycles:
        name = (await cycles.create(harness.spec, "", "")).name
        await until(cycles, name, lambda c: c.stage("publish").state is StageState.RUNNING)
        await cycles.cancel(name)
        assert (await ended(cycles, name)).state is CycleState.CANCELLED


async def test_a_pipeline_has_one_cycle_at_a_time_and_an_equal_request_joins_it(harness: Harness) -> None:
    harness.imports.release.clear()
    async with service(harness) as cycles:
        first = await cycles.create(harness.spec, "", "")
        assert (await cycles.create(harness.spec, "", "")).name == first.name
        other = replace(harness.spec, model="models/other")
        with pytest.raises(FailedPreconditionError) as caught:
            await cycles.create(other, "", "")
        assert caught.value.reason == "CYCLE_AT_WORK"
        assert caught.value.metadata == {"cycle": first.name}
        harness.imports.release.set()
        await ended(cycles, first.name)
        assert (await cycles.create(other, "", "")).name != first.name


async def test_a_repeated_request_answers_with_the_same_cycle(harness: Harness) -> None:
    async with service(harness) as cycles:
        first = await cycles.create(harness.spec, "r1", "")
        await ended(cycles, first.name)
        assert (await cycles.create(harness.spec, "r1", "")).name == first.name
        assert (await cycles.create(harness.spec, "r2", "")).name != first.name


async def test_a_request_id_is_of_one_cycle_only(harness: Harness) -> None:
    async with service(harness) as cycles:
        first = await cycles.create(harness.spec, "r1", "")
        with pytest.raises(InvalidArgumentError) as caught:
            await cycles.create(replace(harness.spec, model="models/other"), "r1", "")
        assert caught.value.reason == "REQUEST_ID_REUSED"
        assert caught.value.metadata == {"request_id": "r1", "cycle": first.name}
        await ended(cycles, first.name)


async def test_a_recipe_that_cleaning_refuses_is_refused_at_once(harness: Harness) -> None:
    harness.datasets.error = InvalidArgumentError(
        "No operator is called fix_unicorn.", violations=[FieldViolation("spec.operators[0].name", "is unknown")]
    )
    async with service(harness) as cycles:
        with pytest.raises(InvalidArgumentError) as caught:
            await cycles.create(harness.spec, "", "")
        assert caught.value.violations == (FieldViolation("spec.dataset.operators[0].name", "is unknown"),)
        assert not await cycles.page("", "", 10)


async def test_two_sources_of_one_name_are_refused(harness: Harness) -> None:
    async with service(harness) as cycles:
        with pytest.raises(InvalidArgumentError) as caught:
            await cycles.create(replace(harness.spec, sources=harness.spec.sources * 2), "", "")
    assert caught.value.violations[0].field == "spec.sources[1].source"


async def test_pages_go_from_new_to_old(harness: Harness) -> None:
    async with service(harness) as cycles:
        names = []
        for loop in ("a", "b", "a"):
            names.append((await cycles.create(replace(harness.spec, name=loop), "", "")).name)
            await ended(cycles, names[-1])
        assert [cycle.name for cycle in await cycles.page("", "", 10)] == names[::-1]
        newest = (await cycles.page("a", "", 1))[0]
        assert newest.name == names[2]
        assert [cycle.name for cycle in await cycles.page("a", newest.cycle_id, 10)] == [names[0]]


async def test_a_cycle_that_does_not_exist(harness: Harness) -> None:
    async with service(harness) as cycles:
        with pytest.raises(NotFoundError):
            await cycles.get("pipelines/headlines/cycles/none")
