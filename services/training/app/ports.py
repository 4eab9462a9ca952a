"""What training's use cases need from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from services.kit.failure import Failure
from services.kit.progress import Progress
from services.training.domain.device import Device
from services.training.domain.machine import Machine
from services.training.domain.report import LossPoint, Report
from services.training.domain.run import Run
from services.training.domain.tasks import Architecture
from services.training.domain.training_spec import BaseModel, TrainingSpec


class RunStore(Protocol):
    """Stores runs; each call is one transaction."""

    def create(self, run: Run) -> Run:
        """Stores a new run; returns the existing one if its request id is known."""
        ...

    def get(self, name: str) -> Run | None:
        """The run."""
        ...

    def page(self, before: str, limit: int) -> Sequence[Run]:
        """Runs older than the one with the given name (all if it is empty), newest first."""
        ...

    def by_request(self, request_id: str) -> Run | None:
        """The run that a request id created."""
        ...

    def succeeded(self, digest: str) -> Run | None:
        """The newest succeeded run with this digest."""
        ...

    def under_way(self, digest: str) -> Run | None:
        """The oldest queued or running run with this digest that is not being cancelled."""
        ...

    def unfinished(self) -> Sequence[Run]:
        """Queued and running runs, and ended ones whose event was not published yet; oldest first."""
        ...

    def update(self, run: Run) -> None:
        """Replaces a run, except for its request to be cancelled."""
        ...

    def request_cancel(self, name: str) -> None:
        """Stores the request to cancel a run."""
        ...

    def mark_announced(self, name: str) -> None:
        """Marks the event of a run's end as published; changes nothing else."""
        ...

    def mark_promoted(self, name: str, now: datetime) -> None:
        """Makes a run the champion of its model from now on; changes nothing else."""
        ...

    def champion(self, model_name: str) -> Run | None:
        """The run of a model that was promoted last."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerView:
    """The observed state of a run's worker; if it ended without report and failure, it was killed or asked to stop.

    `ending` explains how a worker without a result ended, with the last lines of its log. `stopped` means that it ended
    after a request to stop, so it was not a failed attempt. `loss_curve` is that of the training so far.
    """

    alive: bool
    progress: Progress | None
    report: Report | None
    failure: Failure | None
    ending: str = ""
    stopped: bool = False
    loss_curve: tuple[LossPoint, ...] = ()


class Workers(Protocol):
    """Worker processes, one per run; they outlive the service and are found again."""

    def start(self, run: Run, champion: Run | None = None) -> None:
        """Starts the run's worker, which resumes from its last checkpoint and compares the result with the champion."""
        ...

    def view(self, run: Run) -> WorkerView:
        """The state of the run's worker."""
        ...

    def stop(self, run: Run) -> None:
        """Asks the worker to store a checkpoint and exit."""
        ...


class Registry(Protocol):
    """The model registry."""

    def prepare(self) -> None:
        """Starts opening the registry in the background, because a registration will follow; returns at once."""
        ...

    def register(self, run: Run) -> str:
        """Registers the model of a succeeded run as challenger, once; of a trial only what was measured.

        Returns:
            Its version, for example `headlines/3`; empty for a trial.

        Raises:
            UnavailableError: the registry does not accept it; a retry may help.
        """
        ...

    def promote(self, model_version: str) -> None:
        """Makes it the champion."""
        ...


class Announcer(Protocol):
    """Publishes events to the other services."""

    def ended(self, run: Run) -> None:
        """Publishes that a run reached its final state; a repeat has the same event id."""
        ...


class BaseModels(Protocol):
    """Resolves names of base models to weights."""

    def names(self) -> Sequence[str]:
        """Names that are known without a folder."""
        ...

    def find(self, name: str) -> BaseModel:
        """Describes a base model.

        Raises:
            NotFoundError: it is neither a known name nor a model's folder.
            PermissionDeniedError: the folder is outside those that models may lie in.
            FailedPreconditionError: the file of a known name has not been fetched.
            InvalidArgumentError: the model in the folder cannot be loaded safely.
        """
        ...

    def config(self, name: str) -> Mapping[str, Any]:
        """A base model's `config.json`, by which its memory is planned; its weights need not be there.

        Raises:
            NotFoundError: neither a known name nor a folder with a configuration.
            InvalidArgumentError: the configuration cannot be read.
        """
        ...


class MachineView(Protocol):
    """The machine that runs are trained on."""

    def look(self) -> Machine:
        """Its devices and their memory."""
        ...


class MeasuredDevice(Protocol):
    """The machine as a device that serves."""

    def device(self, architecture: Architecture) -> Device:
        """Its speed with builds of an architecture; measured when it is asked for first, which takes a minute.

        Raises:
            UnavailableError: it could not be measured.
        """
        ...


class Artifacts(Protocol):
    """Folders that runs read and write."""

    def check_dataset(self, spec: TrainingSpec) -> None:
        """Checks that the spec's data set can be used for training, without reading its rows.

        Raises:
            NotFoundError: it does not exist.
            InvalidArgumentError: it lacks a column that is to be learnt.
            FailedPreconditionError: it is another snapshot than expected, or one of its parts is missing or empty.
            DataLossError: one of its files is damaged.
        """
        ...

    def check_build(self, uri: str, digest: str) -> None:
        """Reads a build and verifies its signature and its digest.

        Raises:
            NotFoundError: it does not exist.
            FailedPreconditionError: it is damaged, unsigned or another build than expected.
            UnavailableError: the store does not answer.
        """
        ...
