"""Answers requests; async from end to end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from services.kit.clock import Clock
from services.kit.errors import InternalError
from services.kit.ids import new_id
from services.serving.app.ports import InferenceServer, Served, ServedLog
from services.serving.app.routing import RoutingTable
from services.serving.domain.answer import Classified, FinishReason, Piece, Prompt, Sampling, Task, classified
from services.serving.domain.names import model_name, version_name


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

    def __init__(self, table: RoutingTable, server: InferenceServer, served: ServedLog, clock: Clock) -> None:
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
