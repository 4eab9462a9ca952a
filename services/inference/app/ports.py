"""What the use cases need from outside, by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from services.inference.domain.model import Build, Model, ModelVersion
from services.inference.domain.route import ModelRoute
from services.kit.probes import Probes


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

    def routed(self, route: ModelRoute) -> Sequence[ModelVersion]:
        """The versions in a route, by number."""
        ...

    def set_route(self, route: ModelRoute, now: datetime, *, traceparent: str = "", done_by: str = "") -> ModelRoute:
        """Replaces the route of a model by one that was made from it, and queues its event.

        Versions in it become serving ones, those that are not retired; if another one serves, its event is queued, too.
        `done_by` is the id of the request that wanted it, if it had one. Returns the route with its new revision.

        Raises:
            AbortedError: another process has changed the route meanwhile.
        """
        ...

    def done_by(self, model: str, request_id: str) -> ModelVersion | None:
        """The version that this request made the serving one, if it was done."""
        ...

    def count_load(self, version: ModelVersion) -> ModelVersion:
        """Counts a load of a version into the server; returns it with its new generation."""
        ...

    def unannounced(self) -> Sequence[ModelVersion]:
        """Versions whose event is pending, in the order in which they began to serve."""
        ...

    def mark_announced(self, version: ModelVersion) -> None:
        """Marks its event as published."""
        ...

    def unannounced_routes(self) -> Sequence[tuple[ModelRoute, str]]:
        """Changed routes whose event is pending, oldest first, each with the trace that changed it."""
        ...

    def mark_route_announced(self, route: ModelRoute) -> None:
        """Marks the event of this change as published."""
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

    def probes(self, version: ModelVersion) -> Probes | None:
        """What the build of a version in its place answered when it was made; None if it does not say."""
        ...

    def stamp(self, version: ModelVersion) -> object:
        """Changes when a file of the version, or the set of trusted keys, may have changed; costs no reading."""
        ...

    def configure(self, version: ModelVersion) -> None:
        """Writes the version's configuration, which is read at its next load."""
        ...

    def remove(self, model: str, number: int) -> None:
        """Removes a version's folder; it must not be loaded."""
        ...


class ModelServer(Protocol):
    """Control of the server."""

    def load(self, model: str, number: int) -> None:
        """Loads a version, again if it is loaded already, and returns when it is ready.

        Raises:
            FailedPreconditionError: the server refused it, with its reason; what was loaded stays.
            UnavailableError: the server does not answer.
        """
        ...

    def unload(self, model: str, number: int) -> None:
        """Unloads a version; its requests in flight are answered before."""
        ...

    def answers(self, version: ModelVersion, probes: Probes) -> Sequence[str]:
        """What a loaded version answers to the probes, as they compare it; a text's error for one that it refuses.

        Raises:
            UnavailableError: the server does not answer.
        """
        ...

    def ready_versions(self) -> Mapping[str, frozenset[int]]:
        """Versions that are loaded, by model.

        Raises:
            UnavailableError: the server does not answer.
        """
        ...


class Announcer(Protocol):
    """Publishes facts to the other services; durable when it returns."""

    def published(self, version: ModelVersion) -> None:
        """Publishes that a version serves from now on."""
        ...

    def route_changed(self, route: ModelRoute, traceparent: str) -> None:
        """Publishes a model's new route."""
        ...
