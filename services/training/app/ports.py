"""What training's use cases need from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.kit.failure import Failure
from services.kit.progress import Progress
from services.training.domain.report import Report
from services.training.domain.run import Run
from services.training.domain.training_spec import BaseModel, TrainingSpec


class RunStore(Protocol):
    """Keeps runs; each call is one transaction."""

    def create(self, run: Run) -> Run:
        """Stores a new run; returns the existing one if its request id is known."""
        ...

    def get(self, name: str) -> Run | None:
        """The run."""
        ...

    def page(self, before: str, limit: int) -> Sequence[Run]:
        """Runs with names before the given one, newest first; all when it is empty."""
        ...

    def by_request(self, request_id: str) -> Run | None:
        """The run of a request."""
        ...

    def succeeded(self, digest: str) -> Run | None:
        """The newest succeeded run with this outcome."""
        ...

    def under_way(self, digest: str) -> Run | None:
        """The oldest queued or running run with this outcome that no one asked to cancel."""
        ...

    def unfinished(self) -> Sequence[Run]:
        """Queued and running runs, and ended ones whose event is pending; oldest first."""
        ...

    def update(self, run: Run) -> None:
        """Replaces all of a run but its request to be cancelled."""
        ...

    def request_cancel(self, name: str) -> None:
        """Asks that a run be cancelled."""
        ...

    def mark_announced(self, name: str) -> None:
        """Marks the event of a run's end as published; changes nothing else."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerView:
    """The observed state of a run's worker; without report and failure it was killed or asked to stop.

    `ending` says how a worker without a result ended, as a sentence, with the last lines that it wrote. `stopped`:
    it ended after a request to stop, so that it was not a failed attempt.
    """

    alive: bool
    progress: Progress | None
    report: Report | None
    failure: Failure | None
    ending: str = ""
    stopped: bool = False


class Workers(Protocol):
    """Worker processes, one a run; they outlive the service and are found again."""

    def start(self, run: Run) -> None:
        """Starts the run's worker, which resumes from its last checkpoint."""
        ...

    def view(self, run: Run) -> WorkerView:
        """What is seen of it."""
        ...

    def stop(self, run: Run) -> None:
        """Tells it to store a checkpoint and end."""
        ...


class Registry(Protocol):
    """The model registry."""

    def prepare(self) -> None:
        """Announces a registration, so that it need not wait for the registry's start; returns at once."""
        ...

    def register(self, run: Run) -> str:
        """Registers the model of a succeeded run as challenger, once.

        Returns:
            Its version, for example `headlines/3`.

        Raises:
            UnavailableError: the registry does not accept it; a retry may help.
        """
        ...

    def promote(self, model_version: str) -> None:
        """Makes it the champion."""
        ...


class Announcer(Protocol):
    """Publishes facts to the other services."""

    def ended(self, run: Run) -> None:
        """Publishes that a run reached its final state; a repeat is the same event."""
        ...


class BaseModels(Protocol):
    """Resolves names of base models to weights."""

    def find(self, name: str) -> BaseModel:
        """What is known of a base model.

        Raises:
            NotFoundError: neither a known name nor a model's folder.
            FailedPreconditionError: a known name whose file has not been fetched.
            InvalidArgumentError: a folder whose model is not to be loaded.
        """
        ...


class Artifacts(Protocol):
    """Folders that runs read and leave."""

    def check_dataset(self, spec: TrainingSpec) -> None:
        """Looks whether the spec's data set can be learnt from, without reading its rows.

        Raises:
            NotFoundError: it is not there.
            InvalidArgumentError: it lacks the column that is to be learnt.
            FailedPreconditionError: it is not the expected one, or one of its parts is missing or empty.
            DataLossError: one of its files is damaged.
        """
        ...

    def check_build(self, uri: str, digest: str) -> None:
        """Reads a build and verifies its signature and its digest.

        Raises:
            NotFoundError: it is not there.
            FailedPreconditionError: it is damaged, unsigned or another one.
            UnavailableError: the store does not answer.
        """
        ...
