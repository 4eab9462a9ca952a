"""What is read from a worker's folder, whatever lies there."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.kit.storage.artifacts import ArtifactStore
from services.kit.storage.signing import SigningKey
from services.training.adapters.job import WorkerLock, write_loss_curve
from services.training.adapters.launching import NewProcesses
from services.training.adapters.worker_processes import WorkerProcesses
from services.training.app.ports import WorkerView
from services.training.domain.report import LossPoint, Metric, Report, Variant
from services.training.domain.run import Run
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.methods.lora import Lora
from tests.waiting import wait_for

_METRIC = Metric("accuracy", 0.8, 0.7, 0.9, 50)
_SPEC = TrainingSpec(
    "reviews", "base", "d", "", "0" * 64, TextClassificationTask("label"), Lora(), Optimization(max_steps=2)
)
_NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "run").mkdir()
    (tmp_path / "snapshot").mkdir()
    spec = replace(_SPEC, dataset_uri=(tmp_path / "snapshot").as_uri())
    return Run("runs/r", spec, "", (tmp_path / "run").as_uri(), _NOW, _NOW)


@pytest.fixture
def workers(tmp_path: Path) -> WorkerProcesses:
    store = ArtifactStore(tmp_path.as_uri())
    return WorkerProcesses(
        store,
        tmp_path / "cache",
        tmp_path / "runs",
        tmp_path,
        tmp_path,
        1,
        SigningKey(tmp_path / "k", tmp_path),
        NewProcesses(),
    )


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", "null", '{"tuned": 1}', "[1]", '{"tuned": {"name": "x"}, "variants": []}']
)
def test_a_damaged_report_is_a_failure_with_a_reason(
    run: Run, workers: WorkerProcesses, tmp_path: Path, text: str
) -> None:
    (tmp_path / "run" / "report.json").write_text(text)
    view = workers.view(run)
    assert view.report is None
    assert view.failure is not None
    assert view.failure.reason == "REPORT_UNREADABLE"


def test_damaged_progress_counts_as_none(run: Run, workers: WorkerProcesses, tmp_path: Path) -> None:
    (tmp_path / "run" / "progress.json").write_text("[")
    assert workers.view(run) == WorkerView(False, None, None, None)


def test_the_loss_of_a_training_is_read_from_its_file(run: Run, workers: WorkerProcesses, tmp_path: Path) -> None:
    points = (LossPoint(1, 2.5), LossPoint(2, 2.0))
    write_loss_curve(tmp_path / "run", points)
    assert workers.view(run).loss_curve == points
    for damaged in ("[", "{}}", "[1]", '[["a", 1]]'):
        (tmp_path / "run" / "loss_curve.json").write_text(damaged)
        assert workers.view(run).loss_curve == ()


def test_a_report_of_before_the_loss_was_measured_is_read(run: Run, workers: WorkerProcesses, tmp_path: Path) -> None:
    value = Report(_METRIC, variants=(Variant("int8", "file:///v", "0", 1, _METRIC),)).to_json()
    del value["tuned_loss"], value["variants"][0]["loss"], value["variants"][0]["loss_increase"]
    (tmp_path / "run" / "report.json").write_text(json.dumps(value))
    report = workers.view(run).report
    assert report is not None
    assert (report.tuned_loss, report.variants[0].loss_increase) == (None, None)


def _dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Puts a program in the place of Python, which prints and then does `code`."""
    program = tmp_path / "python"
    program.write_text(
        f'#!{sys.executable}\nimport os\nprint(\'{{"message": "step 3"}}\\nat the end\', flush=True)\n'
        f"open({str(tmp_path / 'pid')!r}, 'x').write(str(os.getpid()))\n{code}"
    )
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))


def _pid(tmp_path: Path) -> int:
    path = tmp_path / "pid"
    return int(wait_for(lambda: path.read_text() if path.is_file() else "", bool, "the program's process id"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            f"os.kill(os.getpid(), {int(signal.SIGKILL)})",
            "killed by signal 9, which usually means that the system ran out of memory",
        ),
        (f"os.kill(os.getpid(), {int(signal.SIGSEGV)})", "signal 11 (SIGSEGV)"),
        ("os._exit(3)", "exit code 3"),
    ],
)
def test_how_a_worker_ended_is_reported_with_its_last_lines(
    run: Run, workers: WorkerProcesses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, said: str
) -> None:
    _dies(monkeypatch, tmp_path, code)
    workers.start(run)
    os.waitid(os.P_PID, _pid(tmp_path), os.WEXITED | os.WNOWAIT)
    view = workers.view(run)
    assert not view.alive
    assert said in view.ending
    assert "step 3 | at the end" in view.ending


def test_a_worker_that_is_killed_after_it_was_asked_to_stop_was_stopped(
    run: Run, workers: WorkerProcesses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _dies(monkeypatch, tmp_path, "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)")
    workers.start(run)
    pid = _pid(tmp_path)
    assert not workers.view(run).stopped

    workers.stop(run)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    assert workers.view(run).stopped


def test_one_process_works_on_a_run_and_is_found_by_its_lock(
    run: Run, workers: WorkerProcesses, tmp_path: Path
) -> None:
    lock = WorkerLock(tmp_path / "run")
    assert lock.holder() is None
    with lock:
        assert lock.held
        assert lock.holder() == os.getpid()
        assert workers.view(run).alive
        # A second start of the run, such as after a restart of the service, starts nothing.
        workers.start(run)
        assert not (tmp_path / "run" / "job.json").exists()
        with WorkerLock(tmp_path / "run") as second:
            assert not second.held
        assert lock.holder() == os.getpid()
    assert lock.holder() is None
    assert not workers.view(run).alive
