"""Worker processes: started in a session of their own, found again by the run's folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from services.kit.errors import InvalidArgumentError
from services.kit.storage.artifacts import ArtifactStore, local_path
from services.training.adapters.job import FAILURE_FILE, JOB_FILE, REPORT_FILE, Job, read_progress
from services.training.app.ports import WorkerView
from services.training.domain.report import Report
from services.training.domain.run import Failure, Progress, Run

_PID_FILE = "worker.pid"
_LOG_FILE = "worker.log"


class WorkerProcesses:
    """Implements `services.training.app.ports.Workers`; what a worker found is read from its run's folder."""

    def __init__(
        self, artifacts: ArtifactStore, cache: Path, models_dir: Path, downloads_dir: Path, threads: int
    ) -> None:
        self._artifacts, self._cache = artifacts, cache
        self._models, self._downloads, self._threads = models_dir, downloads_dir, threads
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, run: Run) -> None:
        """See the port."""
        if self._pid(run) is not None:
            return
        folder = _folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        self._cache.mkdir(parents=True, exist_ok=True)
        snapshot = self._artifacts.fetch_folder(run.recipe.dataset_uri, self._cache)
        job = Job(run.name, folder, snapshot, self._models, self._downloads, run.recipe, self._threads).write()
        environment = {**os.environ, **({"TRACEPARENT": run.traceparent} if run.traceparent else {})}
        with (folder / _LOG_FILE).open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "services.training.worker", "--job", str(job)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        (folder / _PID_FILE).write_text(str(child.pid))
        self._children[run.name] = child

    def view(self, run: Run) -> WorkerView:
        """See the port."""
        # Liveness first: a worker that ends in between has left its result already.
        alive = self._pid(run) is not None
        folder = _folder(run)
        progress = read_progress(folder)
        report, failure = _json(folder / REPORT_FILE), _json(folder / FAILURE_FILE)
        return WorkerView(
            alive,
            Progress(**asdict(progress)) if progress else None,
            Report.from_json(report) if report else None,
            Failure(**failure) if failure else None,
        )

    def stop(self, run: Run) -> None:
        """See the port."""
        pid = self._pid(run)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)

    def _pid(self, run: Run) -> int | None:
        child = self._children.get(run.name)
        if child is not None:
            if child.poll() is None:
                return child.pid
            del self._children[run.name]
            return None
        folder = _folder(run)
        try:
            pid = int((folder / _PID_FILE).read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        # A number may be another process's by now; a worker names its job.
        return pid if str(folder / JOB_FILE).encode() in command else None


def _folder(run: Run) -> Path:
    folder = local_path(run.uri)
    if folder is None:
        raise InvalidArgumentError(
            f"Runs need a local folder, {run.uri} is none; give TIDEMILL_ARTIFACTS_URL as file://."
        )
    return folder


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None
