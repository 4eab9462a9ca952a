"""Runs whose training several processes share, as the service starts, stops and follows them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from services.kit.storage.artifacts import ArtifactStore
from services.kit.storage.signing import SigningKey
from services.training.adapters.job import Cluster, WorkerLock
from services.training.adapters.launching import ForkServer, Launcher
from services.training.adapters.worker_processes import WorkerProcesses
from services.training.app.ports import WorkerView
from services.training.domain.run import Run
from services.training.domain.strategies import Strategy
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.methods.full import Full
from services.training.engine.methods.lora import Lora
from tests.integration.training.bases import make_encoder, make_writer, write_reviews
from tests.integration.training.jobs import assert_built_as_trained, writer_spec
from tests.processes import has_ended
from tests.waiting import PATIENCE_S, wait_for, wait_until

_NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    """One process that has the libraries, for all runs of this module."""
    server = ForkServer()
    yield server
    server.close()


class Here:
    """A run on this machine, without the service."""

    def __init__(self, folder: Path, spec: TrainingSpec, launcher: Launcher, cluster: Cluster | None = None) -> None:
        self.folder = folder / "run"
        key = SigningKey(folder / "keys" / "signing.pem", folder / "keys" / "trusted")
        key.ensure()
        self.run = Run("runs/r", spec, "", self.folder.as_uri(), _NOW, _NOW)
        store, cache, runs = ArtifactStore(folder.as_uri()), folder / "cache", folder / "runs"
        self.workers = WorkerProcesses(
            store, cache, runs, folder, folder, threads=2, key=key, launcher=launcher, cluster=cluster
        )

    def start(self) -> None:
        self.workers.start(self.run)

    def stepped(self, steps: int, patience_s: float = PATIENCE_S) -> list[psutil.Process]:
        """Its processes, rank 0 first, once it has done this many steps of its training."""

        def far(view: WorkerView) -> bool:
            assert view.alive, view
            return view.progress is not None and view.progress.phase == "train" and view.progress.done >= steps

        what = f"step {steps}, see {self.folder}/worker.log,"
        wait_for(lambda: self.workers.view(self.run), far, what, patience_s)
        first = psutil.Process(WorkerLock(self.folder).holder())
        return [first, *first.children()]

    def ended(self, patience_s: float = PATIENCE_S) -> WorkerView:
        return wait_for(
            lambda: self.workers.view(self.run),
            lambda seen: not seen.alive,
            f"the end, see {self.folder}/worker.log,",
            patience_s,
        )

    @property
    def log(self) -> str:
        return (self.folder / "worker.log").read_text(errors="replace")


def reviews_spec(folder: Path, strategy: Strategy, steps: int) -> TrainingSpec:
    """A run of two processes that learns which reviews are good."""
    return TrainingSpec(
        model_name="reviews",
        base_model=str(make_encoder(folder / "bert")),
        dataset_name="datasets/reviews/versions/1",
        dataset_uri=write_reviews(folder / "snapshot").as_uri(),
        dataset_digest="0" * 64,
        task=TextClassificationTask("label", 32),
        method=Full(),
        optimization=Optimization(max_steps=steps, batch_size=8, learning_rate=0.003, checkpoint_every=5),
        max_eval_examples=12,
        strategy=strategy,
        processes=2,
    )


def _gone(processes: list[psutil.Process]) -> None:
    """Waits until none of them is left."""
    wait_until(lambda: all(has_ended(each.pid) for each in processes), "the end of all processes")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_resumes_whichever_process_was_killed(tmp_path: Path, launcher: Launcher, strategy: Strategy) -> None:
    here = Here(tmp_path, reviews_spec(tmp_path, strategy, steps=120), launcher)
    for victim in (1, 0):
        here.start()
        processes = here.stepped(20 if victim else 40)
        assert len(processes) == 2
        sockets = [each for process in processes for each in process.net_connections()]
        listening = {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}, "others on the network can connect"
        processes[victim].send_signal(signal.SIGKILL)
        _gone(processes)
        view = here.ended()
        assert (view.report, view.failure, view.stopped) == (None, None, False)
        assert ("another process of its training was killed" in view.ending) == bool(victim)
    assert "process 2 of 2 was killed by signal 9" in here.log
    here.start()
    view = here.ended()
    assert view.report is not None, view
    assert view.report.figures["steps"] == 120
    assert view.report.figures["processes"] == 2
    assert view.report.tuned.value > 0.9
    assert here.log.count("resumes from step") == 2
    assert not list(here.folder.glob("ranks-*"))


def test_a_run_that_is_asked_to_stop_keeps_a_checkpoint_of_all_processes(tmp_path: Path, launcher: Launcher) -> None:
    here = Here(tmp_path, reviews_spec(tmp_path, "ddp", steps=3000), launcher)
    here.start()
    processes = here.stepped(7)
    assert {each.nice() for each in processes} == {os.nice(0)}
    # As systemd does, to all of them.
    for each in processes[1:]:
        each.terminate()
    here.workers.stop(here.run)
    view = here.ended()
    assert (view.report, view.failure, view.stopped) == (None, None, True)
    _gone(processes)
    steps = [int(path.name.removeprefix("step-")) for path in (here.folder / "checkpoints").iterdir()]
    assert len(steps) == 1
    assert 7 <= steps[0] < 3000
    assert (here.folder / "checkpoints" / f"step-{steps[0]:08d}" / "ranks.safetensors").is_file()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tp"])
def test_a_writer_is_trained_evaluated_and_built(tmp_path: Path, launcher: Launcher, strategy: Strategy) -> None:
    spec = writer_spec(make_writer(tmp_path / "llama"), write_reviews(tmp_path / "snapshot"), Lora(r=4))
    here = Here(tmp_path, replace(spec, strategy=strategy, processes=2), launcher)
    here.start()
    view = here.ended()
    assert view.report is not None, view
    assert view.report.loss_curve[-1].loss < view.report.loss_curve[0].loss
    assert [variant.precision for variant in view.report.variants] == ["fp32"]
    # What was learnt is in the merged model, and the build answers as that does.
    assert_built_as_trained(view.report)
    assert (here.folder / "adapter").is_dir()
