"""Supervision over fakes: restarts, crashes, cancels, reuse."""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, update

from services.kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.kit.failure import Failure
from services.kit.progress import Progress
from services.training.adapters.run_store import SqlRunStore
from services.training.adapters.tables import runs as runs_table
from services.training.app.advising import Advising
from services.training.app.ports import WorkerView
from services.training.app.runs import Runs
from services.training.app.supervision import Supervision
from services.training.domain.device import DEVICES, HERE, Device
from services.training.domain.machine import Machine
from services.training.domain.report import LossPoint, Metric, Report, Variant
from services.training.domain.run import Run, RunState
from services.training.domain.tasks import Architecture, TextClassificationTask
from services.training.domain.training_spec import BaseModel, Optimization, TrainingSpec
from services.training.domain.trials import Trial
from services.training.engine.methods.lora import Lora
from services.training.entrypoints.mapping import run_to
from services.training.entrypoints.worker import run_supervision
from tests.conftest import OpenDatabase
from tests.waiting import eventually

_GONE = WorkerView(False, None, None, None)
_ALIVE = WorkerView(True, Progress("train", 3, 10), None, None)


class FakeWorkers:
    def __init__(self) -> None:
        self.started: list[str] = []
        self.champions: list[str] = []
        self.stopped: list[str] = []
        self.views: dict[str, WorkerView] = {}

    def start(self, run: Run, champion: Run | None = None) -> None:
        self.started.append(run.name)
        self.champions.append(champion.name if champion else "")
        self.views[run.name] = _ALIVE

    def view(self, run: Run) -> WorkerView:
        return self.views.get(run.name, _GONE)

    def stop(self, run: Run) -> None:
        self.stopped.append(run.name)


class FakeClock:
    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


class FakeRegistry:
    def __init__(self) -> None:
        self.champion = ""
        self.away = False
        self.asked = 0
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1

    def register(self, run: Run) -> str:
        self.asked += 1
        if self.away:
            raise UnavailableError("MLflow is unavailable.", reason="REGISTRY_FAILED")
        return f"{run.spec.model_name}/1"

    def promote(self, model_version: str) -> None:
        self.champion = model_version


class FakeAnnouncer:
    def __init__(self) -> None:
        self.published: list[tuple[str, RunState]] = []
        self.meanwhile: Callable[[Run], object] = lambda run: None

    def ended(self, run: Run) -> None:
        self.meanwhile(run)
        self.published.append((run.name, run.state))


class FakeModels:
    def names(self) -> Sequence[str]:
        return ["encoder"]

    def find(self, name: str) -> BaseModel:
        return BaseModel(name, name, "encoder", 512)

    def config(self, name: str) -> Mapping[str, Any]:
        return {
            "num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 2048, "vocab_size": 21128,
            "num_attention_heads": 8, "type_vocab_size": 2, "max_position_embeddings": 512,
        }  # fmt: skip


class FakeMachine:
    memory_bytes = 8 * 2**30
    cores = 1

    def look(self) -> Machine:
        return Machine("cpu", self.memory_bytes, cores=self.cores)


class FakeCluster:
    """Two nodes of two CPUs; none while it is None."""

    def __init__(self) -> None:
        self.machine: Machine | None = None

    def look(self) -> Machine:
        if self.machine is None:
            raise UnavailableError("Ray does not answer.", reason="RAY_UNAVAILABLE")
        return self.machine


class FakeMeasuredDevice:
    def device(self, architecture: Architecture) -> Device:
        return replace(DEVICES["server"], name=HERE, measured=True)


class FakeArtifacts:
    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.damaged: set[str] = set()

    def check_dataset(self, spec: TrainingSpec) -> None:
        if spec.dataset_uri in self.gone:
            raise NotFoundError(f"spec.dataset.uri: {spec.dataset_uri} is not there.")

    def check_build(self, uri: str, digest: str) -> None:
        if uri in self.gone:
            raise NotFoundError(f"{uri} is not there.")
        if uri in self.damaged:
            raise FailedPreconditionError("model.onnx is damaged", reason="BUILD_DAMAGED")


class Harness:
    def __init__(self, engine: Engine, cluster: FakeCluster | None = None) -> None:
        self.store, self.cluster = SqlRunStore(engine), cluster
        self.workers, self.registry, self.announcer = FakeWorkers(), FakeRegistry(), FakeAnnouncer()
        self.clock, self.artifacts = FakeClock(), FakeArtifacts()
        self.machine = FakeMachine()
        self.runs = Runs(
            self.store,
            FakeModels(),
            self.artifacts,
            self.registry,
            self.machine,
            self.clock,
            lambda i: f"file:///runs/{i}",
            self.cluster,
        )
        self.advising = Advising(FakeModels(), self.store, self.machine, FakeMeasuredDevice())
        self.restart()

    def restart(self) -> None:
        """A new service over the same database and workers."""
        self.supervision = Supervision(self.store, self.workers, self.registry, self.announcer, self.clock)


@pytest.fixture
def engine(open_service_database: OpenDatabase) -> Engine:
    return open_service_database("training")


@pytest.fixture
def harness(engine: Engine) -> Harness:
    return Harness(engine)


def spec(seed: int = 0) -> TrainingSpec:
    return TrainingSpec(
        "reviews",
        "base",
        "datasets/reviews/versions/1",
        "file:///d",
        "0" * 64,
        TextClassificationTask("label"),
        Lora(),
        Optimization(max_steps=2, seed=seed),
    )


_ACCURACY = Metric("accuracy", 0.8, 0.7, 0.9, 50)
_BUILD = Variant("int8", "file:///runs/build", "0" * 64, 1, _ACCURACY)


def finished(*warnings: str) -> WorkerView:
    return WorkerView(False, None, Report(_ACCURACY, variants=(_BUILD,), warnings=warnings), None)


def test_a_run_succeeds_is_registered_published_once_and_reused(harness: Harness) -> None:
    run = harness.runs.create(spec(), "q", "")
    harness.supervision.step()
    assert harness.registry.prepared == 1
    harness.supervision.step()
    assert harness.runs.get(run.name).progress == Progress("train", 3, 10)
    harness.workers.views[run.name] = finished()
    for _ in range(3):
        harness.supervision.step()
    ended = harness.runs.get(run.name)
    assert (ended.state, ended.model_version) == (RunState.SUCCEEDED, "reviews/1")
    assert harness.announcer.published == [(run.name, RunState.SUCCEEDED)]
    again = harness.runs.create(spec(), "other", "")
    assert again.name == run.name
    assert again.reused
    harness.runs.promote(run.name)
    assert harness.registry.champion == "reviews/1"


def test_the_loss_is_there_while_a_run_trains_and_moves_into_its_report(harness: Harness) -> None:
    name = harness.runs.create(spec(), "", "").name
    harness.supervision.step()
    curve = (LossPoint(1, 2.5), LossPoint(2, 2.25))
    harness.workers.views[name] = replace(_ALIVE, loss_curve=curve)
    harness.supervision.step()
    assert harness.runs.get(name).loss_curve == curve
    assert [(point.step, point.loss) for point in run_to(harness.runs.get(name)).loss_curve] == [(1, 2.5), (2, 2.25)]
    # A worker that was started again has none yet; what was known stays.
    harness.workers.views[name] = _ALIVE
    harness.supervision.step()
    assert harness.runs.get(name).loss_curve == curve
    harness.workers.views[name] = finished()
    harness.supervision.step()
    assert list(run_to(harness.runs.get(name)).loss_curve) == []


def test_a_run_is_compared_with_the_one_of_its_model_that_was_promoted_last(harness: Harness) -> None:
    def ended(seed: int) -> str:
        name = harness.runs.create(spec(seed), "", "").name
        harness.supervision.step()
        harness.workers.views[name] = finished()
        harness.supervision.step()
        return name

    first, second = ended(1), ended(2)
    for name in (first, second, first):
        harness.clock.time += timedelta(seconds=1)
        harness.runs.promote(name)
    ended(3)
    # None yet, none yet, and the one that was promoted again.
    assert harness.workers.champions == ["", "", first]
    assert harness.store.champion("another") is None


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_a_run_whose_builds_are_gone_or_damaged_is_done_again(
    harness: Harness, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = harness.runs.create(spec(), "q", "")
    harness.supervision.step()
    harness.workers.views[run.name] = finished()
    harness.supervision.step()
    getattr(harness.artifacts, harm).add(_BUILD.uri)
    again = harness.runs.create(spec(), "other", "")
    assert (again.name == run.name, again.reused, again.state) == (False, False, RunState.QUEUED)
    assert f"{run.name} is not reused" in caplog.text


def test_a_run_whose_report_is_broken_is_done_again(harness: Harness, engine: Engine) -> None:
    run = harness.runs.create(spec(), "q", "")
    harness.supervision.step()
    harness.workers.views[run.name] = finished()
    harness.supervision.step()
    with engine.begin() as connection:
        connection.execute(update(runs_table).values(report="{"))
    assert harness.runs.create(spec(), "other", "").name != run.name


def test_nothing_is_queued_for_a_data_set_that_is_not_there(harness: Harness) -> None:
    harness.artifacts.gone.add(spec().dataset_uri)
    with pytest.raises(NotFoundError, match=r"spec\.dataset\.uri"):
        harness.runs.create(spec(), "q", "")
    assert harness.runs.page("", 10) == []


def test_what_was_done_otherwise_than_asked_is_a_warning_of_the_run(harness: Harness) -> None:
    run = harness.runs.create(spec(), "", "")
    harness.supervision.step()
    harness.workers.views[run.name] = finished("computed in fp32")
    harness.supervision.step()
    assert harness.runs.get(run.name).warnings == ("computed in fp32",)


def test_a_killed_worker_is_started_again_but_not_forever(harness: Harness) -> None:
    run = harness.runs.create(spec(), "", "")
    for _ in range(12):
        harness.supervision.step()
        harness.workers.views[run.name] = _GONE
    assert len(harness.workers.started) == 5
    failure = harness.runs.get(run.name).failure
    assert failure is not None
    assert failure.reason == "WORKER_CRASHED"


def test_one_run_has_the_machine_at_a_time(harness: Harness) -> None:
    first, second = harness.runs.create(spec(1), "", ""), harness.runs.create(spec(2), "", "")
    harness.supervision.step()
    harness.supervision.step()
    running = list(harness.workers.started)
    assert len(running) == 1
    harness.workers.views[running[0]] = finished()
    harness.supervision.step()
    harness.supervision.step()
    assert sorted(harness.workers.started) == sorted([first.name, second.name])


def test_two_equal_specs_are_one_run_while_it_is_queued_and_while_it_runs(harness: Harness) -> None:
    first = harness.runs.create(spec(), "a", "")
    joined = harness.runs.create(spec(), "b", "")
    assert (joined.name, joined.reused) == (first.name, True)
    harness.supervision.step()
    assert harness.runs.create(spec(), "c", "").name == first.name
    assert harness.runs.create(spec(1), "d", "").name != first.name
    harness.runs.cancel(first.name)
    assert harness.runs.create(spec(), "e", "").name != first.name


def test_equal_specs_of_many_callers_at_once_are_one_run(harness: Harness) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: harness.runs.create(spec(), f"r{n}", ""), range(16)))
    assert len({run.name for run in made}) == 1
    assert [run.reused for run in made].count(False) == 1


def test_a_start_that_a_part_unavailable_or_a_full_disk_holds_up_is_not_an_attempt(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = harness.runs.create(spec(), "", "")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    errors: list[Exception] = [UnavailableError("the artefact store is unavailable"), full] * 4
    start = harness.workers.start

    def held_up(run: Run, champion: Run | None = None) -> None:
        if errors:
            raise errors.pop()
        start(run, champion)

    monkeypatch.setattr(harness.workers, "start", held_up)
    reasons = []
    for _ in range(8):
        with pytest.raises((UnavailableError, ResourceExhaustedError)):
            harness.supervision.step()
        progress = harness.runs.get(run.name).progress
        assert progress is not None
        assert progress.waiting is not None
        reasons.append(progress.waiting.reason)
    assert reasons == ["DISK_FULL", "UNAVAILABLE"] * 4
    harness.supervision.step()
    started = harness.runs.get(run.name)
    assert started.state is RunState.RUNNING
    assert started.progress is not None
    assert started.progress.waiting is None
    assert harness.workers.started == [run.name]


def test_a_worker_that_was_asked_to_stop_by_another_is_not_an_attempt(harness: Harness) -> None:
    run = harness.runs.create(spec(), "", "")
    for _ in range(8):
        harness.supervision.step()
        harness.workers.views[run.name] = WorkerView(False, None, None, None, stopped=True)
    harness.supervision.step()
    assert len(harness.workers.started) == 9
    assert harness.runs.get(run.name).state is RunState.RUNNING


async def test_supervision_continues_whatever_a_step_raises(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.kit.retrying.FIRST_PAUSE_S", 0.01)
    run = harness.runs.create(spec(), "", "")
    errors = [ValueError("no one foresaw it"), FailedPreconditionError("not now"), UnavailableError("away")]
    seen = harness.store.unfinished

    def unfinished() -> object:
        if errors:
            raise errors.pop()
        return seen()

    monkeypatch.setattr(harness.store, "unfinished", unfinished)
    task = asyncio.create_task(run_supervision(harness.supervision))
    await eventually(lambda: harness.workers.started, "the worker")
    assert not task.done()
    task.cancel()
    assert harness.workers.started == [run.name]


@pytest.mark.parametrize("report", ["{", "[]", "{}", '{"tuned": 3}', "null"])
def test_a_report_that_is_broken_in_the_database_hides_no_other_run(
    harness: Harness, engine: Engine, report: str
) -> None:
    broken, other = harness.runs.create(spec(1), "", ""), harness.runs.create(spec(2), "", "")
    harness.supervision.step()
    harness.workers.views[broken.name] = finished()
    harness.supervision.step()
    with engine.begin() as connection:
        connection.execute(update(runs_table).where(runs_table.c.name == broken.name).values(report=report))
    assert harness.runs.get(broken.name).report is None
    harness.supervision.step()
    assert harness.runs.get(other.name).state is RunState.RUNNING
    assert {run.name for run in harness.runs.page("", 10)} == {broken.name, other.name}


def test_a_repeated_request_is_one_run(harness: Harness) -> None:
    assert harness.runs.create(spec(), "q", "").name == harness.runs.create(spec(), "q", "").name
    with pytest.raises(InvalidArgumentError, match="was already used for another run"):
        harness.runs.create(spec(9), "q", "")
    assert len(harness.runs.page("", 10)) == 1


@pytest.mark.parametrize(
    "begin", [lambda harness: None, lambda harness: harness.supervision.step()], ids=["queued", "running"]
)
def test_a_cancelled_run_ends_cancelled(harness: Harness, begin: Callable[[Harness], None]) -> None:
    run = harness.runs.create(spec(), "", "")
    begin(harness)
    harness.runs.cancel(run.name)
    harness.supervision.step()
    harness.workers.views[run.name] = _GONE
    harness.supervision.step()
    assert harness.runs.get(run.name).state is RunState.CANCELLED
    with pytest.raises(FailedPreconditionError, match="only a succeeded run"):
        harness.runs.promote(run.name)


def test_a_failure_of_the_worker_is_the_runs(harness: Harness) -> None:
    run = harness.runs.create(spec(), "", "")
    harness.supervision.step()
    harness.workers.views[run.name] = WorkerView(False, None, None, Failure("COLUMN_MISSING", "no column"))
    harness.supervision.step()
    assert harness.runs.get(run.name).failure == Failure("COLUMN_MISSING", "no column")
    assert harness.announcer.published == [(run.name, RunState.FAILED)]


def test_a_crash_loop_ends_with_what_the_worker_said_last(harness: Harness) -> None:
    run = harness.runs.create(spec(), "", "")
    killed = WorkerView(False, None, None, None, "It was killed by signal 9; out of memory.")
    for _ in range(12):
        harness.supervision.step()
        harness.workers.views[run.name] = killed
    failure = harness.runs.get(run.name).failure
    assert failure is not None
    assert "ended 5 times" in failure.message
    assert "killed by signal 9" in failure.message


def test_stops_of_the_service_are_not_attempts(harness: Harness) -> None:
    run = harness.runs.create(spec(), "", "")
    for _ in range(8):
        harness.supervision.step()
        harness.supervision.pause()
        # A step that was under way when the service was asked to stop.
        harness.supervision.step()
        harness.workers.views[run.name] = replace(_GONE, stopped=True)
        harness.restart()
    assert harness.workers.stopped == [run.name] * 8
    stored = harness.store.get(run.name)
    assert stored is not None
    assert stored.attempts == 1
    harness.supervision.step()
    harness.workers.views[run.name] = finished()
    harness.supervision.step()
    assert harness.runs.get(run.name).state is RunState.SUCCEEDED


def test_a_registry_that_stays_unavailable_becomes_a_warning_and_a_promotion_registers(harness: Harness) -> None:
    harness.registry.away = True
    run, other = harness.runs.create(spec(1), "", ""), harness.runs.create(spec(2), "", "")
    harness.supervision.step()
    harness.workers.views[run.name] = finished()
    for _ in range(40):
        harness.clock.time += timedelta(seconds=1)
        harness.supervision.step()
    ended = harness.runs.get(run.name)
    assert (ended.state, ended.model_version) == (RunState.SUCCEEDED, "")
    assert "MLflow is unavailable" in ended.warnings[0]
    assert harness.registry.asked == 5
    assert harness.runs.get(other.name).state is RunState.RUNNING
    harness.registry.away = False
    promoted = harness.runs.promote(run.name)
    assert (promoted.model_version, promoted.warnings) == ("reviews/1", ())
    assert harness.registry.champion == "reviews/1"
    assert harness.runs.get(run.name).model_version == "reviews/1"


def test_a_trial_is_compared_with_no_champion_and_cannot_be_promoted(harness: Harness) -> None:
    champion = harness.runs.create(spec(), "", "")
    harness.supervision.step()
    harness.workers.views[champion.name] = finished()
    harness.supervision.step()
    harness.runs.promote(champion.name)
    trial = harness.runs.create(replace(spec(), trial=Trial("reviews", 0.1)), "", "")
    assert not trial.reused
    harness.supervision.step()
    assert harness.workers.champions[-1] == ""
    harness.workers.views[trial.name] = WorkerView(False, None, Report(_ACCURACY), None)
    harness.supervision.step()
    assert harness.runs.get(trial.name).state is RunState.SUCCEEDED
    with pytest.raises(FailedPreconditionError, match="trial"):
        harness.runs.promote(trial.name)
    assert harness.runs.create(replace(spec(), trial=Trial("another", 0.1)), "", "").name == trial.name


def test_a_promotion_while_the_end_is_reported_keeps_its_version(harness: Harness) -> None:
    def promote(run: Run) -> None:
        harness.registry.away = False
        harness.runs.promote(run.name)

    harness.registry.away, harness.announcer.meanwhile = True, promote
    run = harness.runs.create(spec(), "", "")
    harness.supervision.step()
    harness.workers.views[run.name] = finished()
    for _ in range(40):
        harness.clock.time += timedelta(seconds=1)
        harness.supervision.step()
    assert harness.registry.champion == "reviews/1"
    assert harness.runs.get(run.name).model_version == "reviews/1"
    assert harness.store.unfinished() == []


def test_a_registry_that_comes_back_leaves_no_warning(harness: Harness) -> None:
    harness.registry.away = True
    run = harness.runs.create(spec(), "", "")
    harness.supervision.step()
    harness.workers.views[run.name] = finished()
    harness.supervision.step()
    harness.registry.away = False
    harness.clock.time += timedelta(seconds=2)
    harness.supervision.step()
    ended = harness.runs.get(run.name)
    assert (ended.state, ended.model_version, ended.warnings) == (RunState.SUCCEEDED, "reviews/1", ())


def test_trouble_with_one_run_ends_that_run_only(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = harness.runs.create(spec(1), "", ""), harness.runs.create(spec(2), "", "")
    seen = harness.workers.view

    def view(run: Run) -> WorkerView:
        if run.name == first.name:
            raise RuntimeError("no such thing was foreseen")
        return seen(run)

    monkeypatch.setattr(harness.workers, "view", view)
    for _ in range(3):
        harness.supervision.step()
    failure = harness.runs.get(first.name).failure
    assert failure is not None
    assert "RuntimeError: no such thing was foreseen" in failure.message
    assert harness.runs.get(second.name).state is RunState.RUNNING


def test_a_run_that_the_machine_has_no_memory_for_is_refused_with_what_fits(harness: Harness) -> None:
    harness.machine.memory_bytes = 1_900_000_000
    large = replace(spec(), optimization=Optimization(max_steps=2, batch_size=64))
    with pytest.raises(FailedPreconditionError) as refused:
        harness.runs.create(large, "", "")
    assert refused.value.reason == "MEMORY_TOO_SMALL"
    assert refused.value.violations[0].field == "spec.optimization.batch_size"
    named = re.search(r"batch_size (\d+) with gradient_accumulation (\d+)", refused.value.message)
    assert named is not None, refused.value.message
    batch, accumulation = int(named.group(1)), int(named.group(2))
    assert batch * accumulation == 64
    smaller = Optimization(max_steps=2, batch_size=batch, gradient_accumulation=accumulation)
    assert harness.runs.create(replace(large, optimization=smaller), "", "").state is RunState.QUEUED
    assert not harness.store.page("", 10)[0].reused
    assert len(harness.store.page("", 10)) == 1, "what was refused left nothing"


def test_more_processes_than_the_machine_has_cores_are_refused_with_the_most(harness: Harness) -> None:
    shared = replace(spec(), strategy="ddp", processes=3)
    for cores, nearest in ((1, "there is 1 core: leave strategy"), (2, "there are 2 cores: name 2")):
        harness.machine.cores = cores
        with pytest.raises(FailedPreconditionError, match=nearest) as refused:
            harness.runs.create(shared, "", "")
        assert refused.value.reason == "DEVICES_MISSING"
        assert refused.value.violations[0].field == "spec.processes"
    harness.machine.cores = 3
    assert harness.runs.create(shared, "", "").spec.processes == 3


def test_several_processes_are_those_of_the_cluster_where_there_is_one(engine: Engine) -> None:
    cluster = FakeCluster()
    harness = Harness(engine, cluster)
    shared = replace(spec(), strategy="ddp", processes=3)
    # One process trains here, whatever the cluster does.
    assert harness.runs.create(spec(), "", "").state is RunState.QUEUED
    with pytest.raises(UnavailableError, match="does not answer"):
        harness.runs.create(shared, "", "")
    cluster.machine = Machine("cpu", 8 * 2**30, cores=2, together=1)
    with pytest.raises(FailedPreconditionError, match="there are CPUs for 2 on the cluster: name 2") as refused:
        harness.runs.create(shared, "", "")
    assert refused.value.reason == "DEVICES_MISSING"
    cluster.machine = Machine("cpu", 8 * 2**30, cores=3, together=2)
    assert harness.runs.create(shared, "", "").spec.processes == 3
    assert harness.runs.plan(shared).chosen.devices == 3
    # Nor is it asked about another machine.
    cluster.machine = None
    assert harness.runs.plan(shared, devices=8, device_bytes=80 * 10**9).machine.devices == 8


def test_a_machine_that_is_too_small_for_any_batch_says_so(harness: Harness) -> None:
    harness.machine.memory_bytes = 10**9
    with pytest.raises(FailedPreconditionError, match="choose a smaller base model or shorter texts"):
        harness.runs.create(spec(), "", "")
