"""Models, their versions, and the rules of which version may answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from services.inference.domain.route import ModelRoute
from services.serving.domain.answer import Task
from services.serving.domain.names import server_model, version_name


class VersionState(StrEnum):
    """State of a version."""

    LOADING = "loading"
    SERVING = "serving"
    """It is in its model's route: it answers requests, or gets copies, or waits to be named."""
    RETIRED = "retired"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Build:
    """What a build's `tidemill.json` says, as far as serving needs it; `size_bytes` is of all its files."""

    task: Task
    precision: str
    base_model: str = ""
    labels: tuple[str, ...] = ()
    prompt_template: str = ""
    embedding_size: int = 0
    """Width of its embeddings; 0 if it gives none."""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a version came from."""

    artifact_uri: str
    digest: str
    run: str = ""
    dataset_version: str = ""


class IntegrityState(StrEnum):
    """What the last verification of a version's files found."""

    UNKNOWN = ""
    VERIFIED = "verified"
    DAMAGED = "damaged"
    UNTRUSTED = "untrusted"
    """Unsigned, or signed by a key that is not trusted."""


@dataclass(frozen=True, slots=True)
class Integrity:
    """The last verification of a version's files: when it ended, and what was wrong (file, expected, found)."""

    state: IntegrityState = IntegrityState.UNKNOWN
    verify_time: datetime | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A published version; numbers of a model only grow and are never used twice."""

    model: str
    number: int
    lineage: Lineage
    build: Build
    state: VersionState
    create_time: datetime
    update_time: datetime
    serve_time: datetime | None = None
    """When it last began to answer."""
    message: str = ""
    request_id: str = ""
    traceparent: str = ""
    integrity: Integrity = Integrity()
    generation: int = 0
    """How often it was loaded into the server."""

    @property
    def name(self) -> str:
        """Resource name."""
        return version_name(self.model, self.number)

    @property
    def is_loadable(self) -> bool:
        """Whether it was loaded before, and may be again."""
        return self.state in (VersionState.RETIRED, VersionState.SERVING)

    @property
    def has_served(self) -> bool:
        """Whether it may serve again: it has before, and nothing is known against it."""
        return self.is_loadable and self.serve_time is not None

    @property
    def server_model(self) -> str:
        """Its name in the server."""
        return server_model(self.model, self.number)


@dataclass(frozen=True, slots=True)
class Model:
    """A model by the name that callers use, with its route and the version that serves, if any."""

    name: str
    create_time: datetime
    update_time: datetime
    serving: ModelVersion | None = None
    route: ModelRoute = field(default_factory=lambda: ModelRoute(""))
