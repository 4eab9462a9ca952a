"""What the use cases need from outside, by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from services.inference.domain.model import Build, Model, ModelVersion


class ModelStore(Protocol):
    """Models and versions; every method is one transaction."""

    def model(self, name: str) -> Model | None:
        """The model with its serving version."""
        ...

    def models(self, after: str, limit: int) -> Sequence[Model]:
        """Models by name, those after a name."""
        ...

    def version(self, model: str, number: int) -> ModelVersion | None:
        """The version of this number."""
        ...

    def versions(self, model: str, before: int, limit: int) -> Sequence[ModelVersion]:
        """Versions below a number, newest first."""
        ...

    def create_version(self, draft: ModelVersion) -> ModelVersion:
        """Keeps the draft under the model's next number; the model is created if need be."""
        ...

    def update_version(self, version: ModelVersion) -> None:
        """Replaces a version's state, message and update time."""
        ...

    def serve(self, version: ModelVersion, *, done_by: str = "") -> None:
        """Makes the version the serving one and the one before it retired, and queues its event.

        `done_by` is the id of the request that wanted it, if it had one.
        """
        ...

    def done_by(self, model: str, request_id: str) -> ModelVersion | None:
        """The version that this request made the serving one, if it was done."""
        ...

    def stop_serving(self, model: str, now: datetime) -> None:
        """Leaves the model without a serving version."""
        ...

    def count_load(self, model: str) -> Model:
        """Counts a load of a model into the server; returns the model with its new generation."""
        ...

    def unannounced(self) -> Sequence[ModelVersion]:
        """Versions whose event is pending, in the order in which they began to serve."""
        ...

    def mark_announced(self, version: ModelVersion) -> None:
        """Marks its event as published."""
        ...


class Builds(Protocol):
    """The artefact store's builds."""

    def fetch(self, uri: str, digest: str) -> Path:
        """A local folder with the verified build.

        Raises:
            InvalidArgumentError, PermissionDeniedError: the URI names no folder of the artefact store.
            NotFoundError: it does not exist.
            FailedPreconditionError: it is damaged, unsigned or signed by a key that is not trusted, or its content
                has another digest.
        """
        ...

    def release(self, folder: Path) -> None:
        """Releases a fetched folder; deletes a copy that was made for it."""
        ...

    def read(self, folder: Path) -> Build:
        """What the build's manifest says.

        Raises:
            InvalidArgumentError: it has none, or one that cannot be served.
        """
        ...


class Repository(Protocol):
    """The model repository's files. A folder that the server may be reading is replaced, never changed."""

    def place(self, version: ModelVersion, build: Path) -> None:
        """Puts a copy of a build in a version's place, completely or not at all; replaces what was there."""
        ...

    def holds(self, version: ModelVersion) -> bool:
        """Whether the version's folder of this release exists; does not check its content."""
        ...

    def good_build(self, version: ModelVersion) -> Path | None:
        """The build inside the version's folder, if it exists and verifies."""
        ...

    def verify(self, version: ModelVersion) -> None:
        """Reads all files that the server reads for this version, and compares them with what was published.

        Raises:
            FailedPreconditionError: with reason BUILD_DAMAGED, BUILD_UNSIGNED or BUILD_UNTRUSTED.
        """
        ...

    def stamp(self, version: ModelVersion) -> object:
        """Changes when a file of the version, or the set of trusted keys, may have changed; costs no reading."""
        ...

    def configure(self, version: ModelVersion) -> None:
        """Makes the configuration name this version as the one to serve; read at the next load."""
        ...

    def remove(self, model: str, number: int) -> None:
        """Removes a version's folder; it must not be loaded."""
        ...


class ModelServer(Protocol):
    """Control of the server."""

    def load(self, model: str) -> None:
        """Loads what the configuration names and returns when it is ready; the previous version serves until then.

        Raises:
            FailedPreconditionError: the server refused it, with its reason; the previous version keeps serving.
            UnavailableError: the server does not answer.
        """
        ...

    def unload(self, model: str) -> None:
        """Takes a model out of service, after its requests in flight."""
        ...

    def ready_versions(self) -> Mapping[str, frozenset[int]]:
        """Versions that answer now, by model.

        Raises:
            UnavailableError: the server does not answer.
        """
        ...


class Announcer(Protocol):
    """Publishes facts to the other services; durable when it returns."""

    def published(self, version: ModelVersion) -> None:
        """Tells that a version answers requests from now on."""
        ...
