"""What the service and its worker process share: the job, and the worker's progress, as JSON files."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from services.kit.progress import Progress
from services.kit.whole_files import replace_text
from services.training.domain.report import LossPoint
from services.training.domain.training_spec import TrainingSpec
from services.training.engine.methods import stored_method

JOB_FILE = "job.json"
PROGRESS_FILE = "progress.json"
LOSS_CURVE_FILE = "loss_curve.json"
REPORT_FILE = "report.json"
FAILURE_FILE = "failure.json"
STOPPED_FILE = "stopped"
# Exit codes of the worker besides 0: stopped on request; failed, with the reason in failure.json.
EXIT_CANCELLED = 75
EXIT_FAILED = 70
# The disk is so full that not even failure.json could be written.
EXIT_DISK_FULL = 74
# Another process works on the job.
EXIT_AT_WORK = 76
# Another process of the training was killed.
EXIT_RANK_LOST = 77
# A process of the training on a cluster is gone, or the cluster.
EXIT_CLUSTER_LOST = 78

_PID_FILE = "worker.pid"
# How long a worker waits for the lock, which the service takes for an instant when it looks who holds it.
_LOCK_S = 2.0
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Champion:
    """The model that a run's result is compared with: its run, where that stored it, and what it was trained for."""

    run: str
    uri: str
    spec: TrainingSpec


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster: host and port of its head, and the CPUs of it that each process of a training takes."""

    address: str
    cpus: int = 1


@dataclass(frozen=True, slots=True)
class Job:
    """The worker's input; `folder` is the run's folder on this machine, `uri` the location of its results.

    `signing_key` is the file of the private key, `trusted_keys` the folder of the public ones. `champion` is None while
    no run of the model was promoted.
    """

    run: str
    folder: Path
    uri: str
    snapshot: Path
    models_dir: Path
    downloads_dir: Path
    spec: TrainingSpec
    threads: int
    signing_key: Path
    trusted_keys: Path
    champion: Champion | None = None
    niceness: int = 0
    """Of the worker's process: see `lower_priority`."""
    cluster: Cluster | None = None
    """Where the processes of the training are; on this machine when None."""

    def write(self) -> Path:
        """Stores the job in its folder."""
        value = {
            "run": self.run,
            "folder": str(self.folder),
            "uri": self.uri,
            "snapshot": str(self.snapshot),
            "models_dir": str(self.models_dir),
            "downloads_dir": str(self.downloads_dir),
            "recipe": self.spec.to_json(),
            "threads": self.threads,
            "signing_key": str(self.signing_key),
            "trusted_keys": str(self.trusted_keys),
            "champion": self.champion
            and {"run": self.champion.run, "uri": self.champion.uri, "recipe": self.champion.spec.to_json()},
            "niceness": self.niceness,
            "cluster": self.cluster and asdict(self.cluster),
        }
        path = self.folder / JOB_FILE
        write_json(path, value)
        return path

    @classmethod
    def read(cls, path: Path) -> Job:
        """The job in a file."""
        value = json.loads(path.read_text())
        champion = value.get("champion")
        return cls(
            run=value["run"],
            folder=Path(value["folder"]),
            uri=value["uri"],
            snapshot=Path(value["snapshot"]),
            models_dir=Path(value["models_dir"]),
            downloads_dir=Path(value["downloads_dir"]),
            spec=TrainingSpec.from_json(value["recipe"], stored_method),
            threads=value["threads"],
            signing_key=Path(value["signing_key"]),
            trusted_keys=Path(value["trusted_keys"]),
            champion=champion
            and Champion(champion["run"], champion["uri"], TrainingSpec.from_json(champion["recipe"], stored_method)),
            niceness=value.get("niceness", 0),
            cluster=Cluster(**value["cluster"]) if value.get("cluster") else None,
        )


class WorkerLock:
    """The lock of the process that works on a run, on a file with its process id.

    The kernel releases it when that process ends, however it ends. So two never work on a run, and a service that was
    restarted knows whether one still does, even where the process id belongs to another process by then.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is the run's."""
        self._path = folder / _PID_FILE
        self._file: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._file is not None

    def __enter__(self) -> Self:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(file)
                    return self
                time.sleep(_PAUSE_S)
            else:
                break
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def holder(self) -> int | None:
        """Process id of the process that holds it; None if none does."""
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                with self._path.open() as file:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except FileNotFoundError:
                return None
            except BlockingIOError:
                content = self._path.read_text()
            # Between the lock and its process id there is an instant.
            if content or time.monotonic() > deadline:
                return int(content)
            time.sleep(_PAUSE_S)


def write_progress(folder: Path, progress: Progress) -> None:
    """Replaces the run's progress file; `phase` is prepare, train, evaluate, compress or store."""
    write_json(folder / PROGRESS_FILE, progress.to_json())


def read_progress(folder: Path) -> Progress | None:
    """The worker's latest progress; None before the first.

    Raises:
        ValueError, TypeError: the file is damaged.
    """
    path = folder / PROGRESS_FILE
    return Progress.from_json(json.loads(path.read_text())) if path.is_file() else None


def write_loss_curve(folder: Path, points: Sequence[LossPoint]) -> None:
    """Replaces the file with the loss of the training so far."""
    write_json(folder / LOSS_CURVE_FILE, [[point.step, point.loss] for point in points])


def read_loss_curve(folder: Path) -> tuple[LossPoint, ...]:
    """The loss of the training so far; empty before the first.

    Raises:
        ValueError, TypeError: the file is damaged.
    """
    path = folder / LOSS_CURVE_FILE
    if not path.is_file():
        return ()
    return tuple(LossPoint(int(step), float(loss)) for step, loss in json.loads(path.read_text()))


def write_json(path: Path, value: object) -> None:
    """Replaces a file atomically."""
    replace_text(path, json.dumps(value, ensure_ascii=False, indent=1))
