"""Starts worker processes, each in a session of its own, and finds them again by the lock in the run's folder."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path
from typing import Any

from services.kit.errors import disk_full
from services.kit.failure import Failure
from services.kit.progress import Progress
from services.kit.storage.artifacts import ArtifactStore, local_path
from services.kit.storage.signing import SigningKey
from services.training.adapters.job import (
    EXIT_AT_WORK,
    EXIT_CLUSTER_LOST,
    EXIT_DISK_FULL,
    EXIT_RANK_LOST,
    FAILURE_FILE,
    REPORT_FILE,
    STOPPED_FILE,
    Champion,
    Cluster,
    Job,
    WorkerLock,
    read_loss_curve,
    read_progress,
)
from services.training.adapters.launching import Child, Launcher, terminate
from services.training.app.ports import WorkerView
from services.training.domain.report import LossPoint, Report
from services.training.domain.run import Run

_LOG_FILE = "worker.log"
_LOG_TAIL_BYTES = 16_384
_LINES_SHOWN = 5
_LINE_SHOWN = 300

logger = logging.getLogger(__name__)


class WorkerProcesses:
    """Implements `services.training.app.ports.Workers`; a worker's results are read from its run's folder."""

    def __init__(
        self,
        artifacts: ArtifactStore,
        cache: Path,
        runs_dir: Path,
        models_dir: Path,
        downloads_dir: Path,
        threads: int,
        key: SigningKey,
        launcher: Launcher,
        niceness: int = 0,
        cluster: Cluster | None = None,
    ) -> None:
        """`runs_dir` is the work folder of runs whose results go to a remote store; other runs work in place."""
        self._key, self._launcher, self._niceness, self._cluster = key, launcher, niceness, cluster
        self._artifacts, self._cache, self._runs_dir = artifacts, cache, runs_dir
        self._models, self._downloads, self._threads = models_dir, downloads_dir, threads
        self._children: dict[str, Child] = {}
        # Exit codes of ended children, by run; negative is a signal.
        self._codes: dict[str, int] = {}

    def start(self, run: Run, champion: Run | None = None) -> None:
        """See the port."""
        if self._at_work(run):
            return
        folder = self._folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STOPPED_FILE).unlink(missing_ok=True)
        self._cache.mkdir(parents=True, exist_ok=True)
        snapshot = self._artifacts.fetch_folder(run.spec.dataset_uri, self._cache)
        job = Job(
            run.name,
            folder,
            run.uri,
            snapshot,
            self._models,
            self._downloads,
            run.spec,
            self._threads,
            self._key.private,
            self._key.trusted,
            None if champion is None else Champion(champion.name, champion.uri, champion.spec),
            self._niceness,
            self._cluster if run.spec.processes > 1 else None,
        ).write()
        self._children[run.name] = self._launcher.launch(job, folder / _LOG_FILE, run.traceparent)

    def view(self, run: Run) -> WorkerView:
        """See the port."""
        # Check this first: a worker that ends right afterwards has already written its result.
        alive = self._at_work(run)
        folder = self._folder(run)
        try:
            report, failure = _json(folder / REPORT_FILE), _json(folder / FAILURE_FILE)
            result = (
                None if report is None else Report.from_json(report),
                None if failure is None else Failure(**failure),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # Files are written atomically, so this one was damaged later. Another attempt would overwrite the evidence.
            message = f"What the worker left in {folder} cannot be read: {type(error).__name__}: {error}"
            result = (None, Failure("REPORT_UNREADABLE", message))
        if not alive and not any(result) and self._codes.get(run.name) == EXIT_DISK_FULL:
            result = (None, Failure.of(disk_full(str(folder)), "The run"))
        stopped = not alive and not any(result) and (folder / STOPPED_FILE).exists()
        ending = "" if alive or stopped or any(result) else self._ending(run)
        return WorkerView(alive, _progress(folder), *result, ending, stopped, _loss_curve(folder))

    def _ending(self, run: Run) -> str:
        code = self._codes.get(run.name)
        if code == -signal.SIGKILL:
            how = "It was killed by signal 9, which usually means that the system ran out of memory."
        elif code == EXIT_RANK_LOST:
            how = "It ended because another process of its training was killed."
        elif code == EXIT_CLUSTER_LOST:
            how = "It ended because a process of its training on the cluster, or the cluster itself, was lost."
        elif code is not None and code < 0:
            how = f"It was ended by signal {-code} ({signal.Signals(-code).name})."
        else:
            how = f"It ended with exit code {code}." if code is not None else ""
        lines = _last_lines(self._folder(run) / _LOG_FILE)
        return f"{how} Its last output: {' | '.join(lines)}".strip() if lines else how

    def stop(self, run: Run) -> None:
        """See the port."""
        if not self._at_work(run):
            return
        # Noted here, too: the worker may be killed before it stores its checkpoint and notes that it was stopped.
        (self._folder(run) / STOPPED_FILE).touch()
        child = self._children.get(run.name)
        if child is not None:
            child.stop()
        elif (holder := WorkerLock(self._folder(run)).holder()) is not None:
            terminate(holder)

    def _folder(self, run: Run) -> Path:
        return local_path(run.uri) or self._runs_dir / run.name.rpartition("/")[2]

    def _at_work(self, run: Run) -> bool:
        child = self._children.get(run.name)
        if child is not None:
            code = child.code()
            if code is None and child.followed:
                return True
            if code is not None and code != EXIT_AT_WORK:
                self._codes[run.name] = code
            del self._children[run.name]
        # A worker of the service before this one, or of a process that started workers and is gone.
        return WorkerLock(self._folder(run)).holder() is not None


def _progress(folder: Path) -> Progress | None:
    try:
        return read_progress(folder)
    except (OSError, ValueError, TypeError):
        logger.warning("cannot read the progress in %s; continuing without it", folder)
        return None


def _loss_curve(folder: Path) -> tuple[LossPoint, ...]:
    try:
        return read_loss_curve(folder)
    except (OSError, ValueError, TypeError):
        logger.warning("cannot read the loss curve in %s; continuing without it", folder)
        return ()


def _last_lines(path: Path) -> list[str]:
    """The last lines of a worker's log, only the message of structured lines; empty if there is no log."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [_message(line)[:_LINE_SHOWN] for line in lines if line.strip()][-_LINES_SHOWN:]


def _message(line: str) -> str:
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line.strip()


def _json(path: Path) -> Any:
    """The JSON object in a file; None if the file does not exist.

    Raises:
        ValueError, TypeError: the file does not contain a JSON object.
    """
    if not path.is_file():
        return None
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
        raise TypeError(f"{path.name} is not a JSON object")
    return value
