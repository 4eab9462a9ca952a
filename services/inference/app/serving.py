"""Answers requests; async from end to end."""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from services.inference.app.ports import InferenceServer, Served, ServedLog
from services.inference.domain.model import (
    Classified,
    FinishReason,
    ModelVersion,
    Piece,
    Prompt,
    Sampling,
    Task,
    classified,
    model_name,
    version_name,
)
from services.kit.clock import Clock
from services.kit.errors import FailedPreconditionError, InternalError, NotFoundError, TidemillError
from services.kit.ids import new_id


class ServingTable:
    """Which version of which model is to answer; in memory, so that a request asks no database."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: dict[str, ModelVersion] = {}
        self._labels: dict[tuple[str, int], tuple[str, ...]] = {}
        self._withdrawn: dict[str, TidemillError] = {}

    def expect(self, version: ModelVersion) -> None:
        """Registers a version before it is loaded: the server answers with it just before the load returns."""
        with self._lock:
            self._labels[version.model, version.number] = version.build.labels

    def set(self, version: ModelVersion) -> None:
        """Makes a version the one of its model."""
        with self._lock:
            self._versions[version.model] = version
            self._withdrawn.pop(version.model, None)
            self._labels[version.model, version.number] = version.build.labels

    def remove(self, model: str) -> None:
        """Leaves a model without one."""
        with self._lock:
            self._versions.pop(model, None)
            self._withdrawn.pop(model, None)

    def withdraw(self, model: str, why: TidemillError) -> None:
        """Takes a model whose version cannot be served out of service; its callers get the reason."""
        with self._lock:
            self._versions.pop(model, None)
            self._withdrawn[model] = why

    def all(self) -> Sequence[ModelVersion]:
        """Every serving version."""
        with self._lock:
            return list(self._versions.values())

    def labels(self, model: str, number: int) -> Sequence[str]:
        """Labels of a version that answers or is about to, in the order of its scores.

        Raises:
            InternalError: the version is unknown.
        """
        try:
            return self._labels[model, number]
        except KeyError as error:
            raise InternalError(f"{version_name(model, number)} answered, but was never published.") from error

    def require(self, model: str, task: Task) -> ModelVersion:
        """The version that answers.

        Raises:
            NotFoundError: no version of such a model is published.
            FailedPreconditionError: the model does something else, or its version was withdrawn.
        """
        version = self._versions.get(model)
        if version is None and (why := self._withdrawn.get(model)) is not None:
            raise FailedPreconditionError(
                f"{model_name(model)} is out of service: {why.message}",
                reason=why.reason,
                metadata={**why.metadata, "model": model_name(model)},
            )
        if version is None:
            raise NotFoundError(
                f"No version of {model_name(model)} is published.",
                reason="MODEL_NOT_FOUND",
                metadata={"model": model_name(model)},
            )
        if version.build.task is not task:
            raise FailedPreconditionError(
                f"{model_name(model)} is a model for {version.build.task.value}, not for {task.value}.",
                reason="WRONG_TASK",
                metadata={"model": model_name(model), "task": version.build.task.value},
            )
        return version


class RestartQueue:
    """Models whose process in the server seems to have died; the reconciler loads them again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: set[str] = set()
        self._loaded: dict[str, float] = {}
        self._wake: Callable[[], object] = lambda: None

    def on_add(self, wake: Callable[[], object]) -> None:
        """Calls `wake` whenever a model is added."""
        self._wake = wake

    def add(self, model: str, asked: float = math.inf) -> None:
        """Asks for a model to be loaded again.

        Args:
            model: its name.
            asked: monotonic time in seconds at which the request was sent that showed its process dead. A request from
                before the newest load may have met the process that was replaced, so it asks for nothing.
        """
        with self._lock:
            if asked <= self._loaded.get(model, -math.inf):
                return
            self._models.add(model)
        self._wake()

    def loaded(self, model: str, now: float) -> None:
        """Notes the monotonic time at which a load of a model was complete."""
        with self._lock:
            self._loaded[model] = now

    def take(self) -> frozenset[str]:
        """Removes and returns the queued models."""
        with self._lock:
            found, self._models = frozenset(self._models), set()
        return found


@dataclass(frozen=True, slots=True)
class AnsweredPrediction:
    """A classified text with its answer id."""

    answer: str
    classified: Classified


@dataclass(frozen=True, slots=True)
class AnsweredPiece:
    """A piece of an answer with the answer's id and the version that writes it."""

    answer: str
    model_version: str
    piece: Piece


class Serving:
    """Predicts and generates; every answer has an id and is recorded for later feedback."""

    def __init__(self, table: ServingTable, server: InferenceServer, served: ServedLog, clock: Clock) -> None:
        self._table = table
        self._server = server
        self._served = served
        self._clock = clock

    async def predict(self, model: str, texts: Sequence[str]) -> tuple[Sequence[AnsweredPrediction], str]:
        """Classifies texts; returns predictions in order and the name of the version that answered."""
        began = self._clock.monotonic()
        self._table.require(model, Task.TEXT_CLASSIFICATION)
        rows, number = await self._server.classify(model, texts)
        labels = self._table.labels(model, number)
        answers = [AnsweredPrediction(_answer_id(), classified(labels, row)) for row in rows]
        name = version_name(model, number)
        latency_ms, now = (self._clock.monotonic() - began) * 1000, self._clock.now()
        self._served.add(
            [
                Served(
                    item.answer,
                    name,
                    "predict",
                    latency_ms,
                    now,
                    label=item.classified.label,
                    score=item.classified.score,
                )
                for item in answers
            ]
        )
        return answers, name

    async def generate(self, model: str, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[AnsweredPiece]:
        """Writes an answer, piece by piece; the last piece has a finish reason."""
        began = self._clock.monotonic()
        self._table.require(model, Task.GENERATION)
        answer = _answer_id()
        async with aclosing(self._server.generate(model, prompt, sampling)) as pieces:
            async for piece in pieces:
                name = version_name(model, piece.version)
                ended = piece.finish_reason is not FinishReason.NONE
                if ended:
                    # Recorded before it is returned: feedback may follow at once.
                    self._served.add([self._generated(answer, name, piece, began)])
                yield AnsweredPiece(answer, name, piece)
                if ended:
                    return
        raise InternalError(f"The answer of {model_name(model)} ended without its last piece.", reason="CUT_OFF")

    def _generated(self, answer: str, name: str, piece: Piece, began: float) -> Served:
        return Served(
            answer,
            name,
            "generate",
            (self._clock.monotonic() - began) * 1000,
            self._clock.now(),
            prompt_tokens=piece.prompt_tokens,
            completion_tokens=piece.completion_tokens,
        )


def _answer_id() -> str:
    return f"answers/{new_id()}"
