"""What answering needs from outside, by role."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.kit.errors import InternalError, InvalidArgumentError, TidemillError, UnavailableError
from services.kit.ids import new_id
from services.serving.domain.answer import Classified, Embedded, Piece, Prompt, Recognized, Sampling, Scored
from services.serving.domain.route import RoutedVersion

Spend = Callable[[int], None]
"""Counts tokens of prompts and answers that a caller used."""
Meter = Callable[[], Spend | None]
"""Admits a call of the present caller; None if the caller's tokens need not be counted.

Raises ResourceExhaustedError if the caller has none left.
"""


@dataclass(frozen=True, slots=True)
class Captured:
    """What was asked and answered, masked; `text` is empty for a classifier."""

    prompt: str
    conversation: bool = False
    text: str = ""
    tenant: str = ""
    asked_by: str = ""
    """Pseudonym of the user that the caller named; empty if it named no one."""

    @property
    def size(self) -> int:
        """Characters, about the memory that it takes while it waits."""
        return len(self.prompt) + len(self.text)


@dataclass(frozen=True, slots=True)
class Served:
    """That a request was answered, or failed; `captured` where the model's pipeline keeps answers."""

    answer: str
    model_version: str
    method: str
    latency_ms: float
    answer_time: datetime
    label: str = ""
    score: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    role: str = ""
    """Of the version in its route; a shadow's answer was not returned."""
    shadowed_answer: str = ""
    """Of a shadow: the answer that the caller got."""
    captured: Captured | None = None
    route_etag: str = ""
    """Of the route that chose the version; empty where the caller named it."""
    user_slot: int = 0
    """Slot of the user in the route's hash range, from 1 on; 0 for a call without a user."""
    code: str = ""
    """Status code of the error, if the version did not answer; then no caller received the answer's name."""
    reason: str = ""
    """Of the error."""

    @classmethod
    def of_failure(
        cls, version: RoutedVersion, method: str, error: Exception, latency_ms: float, now: datetime
    ) -> Served:
        """A call that a version did not answer, `predict` or `generate`."""
        kind = error if isinstance(error, TidemillError) else InternalError(type(error).__name__)
        return cls(
            new_answer(),
            version.name,
            method,
            latency_ms,
            now,
            role=version.role,
            code=kind.code,
            reason=kind.reason,
        )

    @classmethod
    def of_prediction(
        cls, answer: str, version: RoutedVersion, found: Classified, latency_ms: float, now: datetime
    ) -> Served:
        """A text that a version classified."""
        return cls(
            answer,
            version.name,
            "predict",
            latency_ms,
            now,
            label=found.noted,
            score=found.score,
            role=version.role,
        )

    @classmethod
    def of_generation(
        cls, answer: str, version: RoutedVersion, last: Piece, latency_ms: float, now: datetime
    ) -> Served:
        """An answer that a version wrote; `last` is its last piece."""
        return cls(
            answer,
            version.name,
            "generate",
            latency_ms,
            now,
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
            role=version.role,
        )


def new_answer() -> str:
    """Name of a new answer, `answers/{answer}`."""
    return f"answers/{new_id()}"


def is_fault_of_version(error: Exception) -> bool:
    """Whether an error says something about the version that was asked, and not about what it was asked."""
    return not isinstance(error, InvalidArgumentError)


class NotLoadedError(UnavailableError):
    """The server does not have this version (yet, or any more); nothing of the request was answered."""


class CascadeCounts(Protocol):
    """Counts what cascades did."""

    def count(self, model: str, outcome: str, texts: int) -> None:
        """Counts texts of a model: `kept` its own answer, `asked` the larger one, or that `failed`."""
        ...


class ServedLog(Protocol):
    """Takes note of answers without holding them up."""

    def add(self, served: Sequence[Served]) -> None:
        """Accepts answers; those that cannot be kept are counted and logged, never lost silently."""
        ...


class ShadowCounts(Protocol):
    """Counts copies of calls for shadow versions."""

    def count(self, outcome: str) -> None:
        """One was `answered`, `failed` or `dropped`."""
        ...


class Deaths(Protocol):
    """Takes note of versions whose process in the server has died or is missing; `model` is the server's name."""

    def generation(self, model: str) -> int:
        """The generation of the version's process now, to be kept with each request."""
        ...

    def report(self, model: str, generation: int) -> None:
        """A request of this generation showed that the process is dead, stuck, or not there."""
        ...

    def back_s(self, model: str) -> float:
        """Seconds after which a version that was reported may answer again; at least 1."""
        ...


class InferenceServer(Protocol):
    """Asks one version in the server. The caller's cancellation and deadline reach it; errors are the kit's."""

    async def classify(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Scored]:
        """Scores of every label for each text, in order.

        Raises:
            NotLoadedError: the server does not have the version.
        """
        ...

    async def recognize(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Recognized]:
        """Spans of each text, in order.

        Raises:
            NotLoadedError: the server does not have the version.
        """
        ...

    async def embed(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Embedded]:
        """The embedding of each text, in order; the version gives embeddings.

        Raises:
            NotLoadedError: the server does not have the version.
        """
        ...

    def generate(self, version: RoutedVersion, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        """Pieces of an answer, the last one with its finish reason.

        Raises:
            NotLoadedError: the server does not have the version; before the first piece.
        """
        ...
