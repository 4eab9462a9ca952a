"""Models, their versions, and the rules of which version may answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from services.kit.errors import InvalidArgumentError


class Task(StrEnum):
    """What a model does."""

    GENERATION = "generation"
    TEXT_CLASSIFICATION = "text_classification"


class VersionState(StrEnum):
    """State of a version."""

    LOADING = "loading"
    SERVING = "serving"
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

    @property
    def name(self) -> str:
        """Resource name."""
        return version_name(self.model, self.number)


@dataclass(frozen=True, slots=True)
class Model:
    """A model by the name that callers use, with the version that answers, if any."""

    name: str
    create_time: datetime
    update_time: datetime
    serving: ModelVersion | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; zero and None mean the defaults: the model's limit, greedy, all tokens, random."""

    max_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A record's text, or a conversation; one of them."""

    text: str | None = None
    conversation: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Classified:
    """A classifier's result for a text; the scores of all labels add up to 1."""

    label: str
    score: float
    scores: dict[str, float] = field(default_factory=dict)


def classified(labels: Sequence[str], scores: Sequence[float]) -> Classified:
    """Names the scores of a text; the label is the first of the highest."""
    named = dict(zip(labels, scores, strict=True))
    label = max(named, key=lambda name: named[name])
    return Classified(label, named[label], named)


class FinishReason(StrEnum):
    """Why an answer ended."""

    NONE = ""
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer; the last one has a finish reason. Token counts are of the whole answer so far."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    version: int


def model_name(model: str) -> str:
    """Resource name of a model."""
    return f"models/{model}"


def version_name(model: str, number: int) -> str:
    """Resource name of a version."""
    return f"models/{model}/versions/{number}"


def model_of(name: str) -> str:
    """The model in `models/{model}`.

    Raises:
        InvalidArgumentError: it is not a model name.
    """
    collection, _, model = name.partition("/")
    if collection != "models" or not model or "/" in model:
        raise InvalidArgumentError(
            f"{name!r} is not a model name; it must look like models/MODEL.", reason="INVALID_NAME"
        )
    return model
