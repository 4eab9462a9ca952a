"""Answers requests; async from end to end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from services.kit.clock import Clock
from services.kit.errors import (
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
)
from services.serving.app.capture import CaptureRules
from services.serving.app.cascading import Cascades, Made
from services.serving.app.ports import (
    Captured,
    InferenceServer,
    NotLoadedError,
    Served,
    ServedLog,
    is_fault_of_version,
    new_answer,
)
from services.serving.app.predicting import predicted
from services.serving.app.routing import RoutingTable
from services.serving.app.shadowing import Shadows
from services.serving.domain.answer import (
    Classified,
    Embedded,
    FinishReason,
    Piece,
    Prompt,
    ReadText,
    Sampling,
    Task,
)
from services.serving.domain.names import CHAMPION, ModelReference, model_name
from services.serving.domain.route import RoutedVersion, slot_of


@dataclass(frozen=True, slots=True)
class Choice:
    """The version that is to answer a call."""

    asked: ModelReference
    user: str
    """For whom the call is; empty where no one is named."""
    version: RoutedVersion
    route_etag: str = ""
    """Of the route that chose it; empty where the caller named it."""

    @property
    def user_slot(self) -> int:
        """Slot of the user in the hash range, from 1 on; 0 without a user."""
        return self.slot_in(self.asked.model)

    def slot_in(self, model: str) -> int:
        """As `user_slot`, in the route of a model."""
        return slot_of(model, self.user) + 1 if self.user else 0


@dataclass(frozen=True, slots=True)
class AnsweredPrediction:
    """A classified text with its answer id."""

    answer: str
    classified: Classified
    version: RoutedVersion
    """The one that answered, of the model or of the larger one behind it."""


@dataclass(frozen=True, slots=True)
class AnsweredPiece:
    """A piece of an answer with the answer's id and the version that writes it."""

    answer: str
    version: RoutedVersion
    piece: Piece


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a request says of being kept: whether its caller allows it, and the caller's tenant."""

    store: bool = True
    tenant: str = ""


_KEEP = Keeping()


class Serving:
    """Predicts and generates; every answer has an id and is recorded for later feedback."""

    def __init__(
        self,
        table: RoutingTable,
        server: InferenceServer,
        served: ServedLog,
        shadows: Shadows,
        clock: Clock,
        capture: CaptureRules | None = None,
        cascades: Cascades | None = None,
    ) -> None:
        """Args:
        table: the routes.
        server: answers.
        served: takes note of answers.
        shadows: send copies.
        clock: the time.
        capture: which answers are captured; none when left out.
        cascades: ask larger classifiers; each model answers alone when left out.
        """
        self._cascades = cascades
        self._table = table
        self._shadows = shadows
        self._capture = capture or CaptureRules()
        self._server = server
        self._served = served
        self._clock = clock

    def choose(self, asked: ModelReference, *tasks: Task, user: str = "") -> Choice:
        """The version that answers; errors as `RoutingTable.choose`."""
        return self._chosen(asked, user, self._table.choose(asked, user, *tasks))

    def _chosen(self, asked: ModelReference, user: str, version: RoutedVersion) -> Choice:
        route = None if asked.version else self._table.route(asked.model)
        return Choice(asked, user, version, route.etag if route is not None else "")

    async def predict(
        self, choice: Choice, texts: Sequence[str], keeping: Keeping = _KEEP, *, truncate: bool = True
    ) -> tuple[Sequence[AnsweredPrediction], RoutedVersion]:
        """Classifies texts or finds their spans; returns predictions in order and the version that was asked first.

        Raises:
            InvalidArgumentError: a text is longer than the model reads, and it must not `truncate`.
        """
        began = self._clock.monotonic()
        try:
            try:
                results = await predicted(self._server, choice.version, texts)
            except NotLoadedError as error:
                choice = await self._another(choice, error)
                results = await predicted(self._server, choice.version, texts)
        except Exception as error:
            self._failed(choice, "predict", error, began)
            raise
        version = choice.version
        made: Sequence[Made] = [Made(result, version, choice.route_etag) for result in results]
        if self._cascades is not None:
            made = await self._cascades.improved(choice.asked, choice.user, texts, made)
        if not truncate:
            _check_whole([(each.result.text, each.version) for each in made])
        answers = [AnsweredPrediction(new_answer(), each.result, each.version) for each in made]
        latency_ms, now = (self._clock.monotonic() - began) * 1000, self._clock.now()
        self._served.add(
            [
                replace(
                    Served.of_prediction(item.answer, item.version, item.classified, latency_ms, now),
                    prompt_tokens=item.classified.text.prompt_tokens,
                    route_etag=each.route_etag,
                    user_slot=choice.slot_in(item.version.model),
                    captured=await self._captured(choice, item.answer, Prompt(text=text), "", keeping),
                )
                for text, item, each in zip(texts, answers, made, strict=True)
            ]
        )
        self._shadows.predicted(choice.asked, texts, [item.answer for item in answers])
        return answers, version

    async def embed(
        self, asked: ModelReference, texts: Sequence[str], *, dimensions: int = 0, truncate: bool = True
    ) -> tuple[Sequence[Embedded], RoutedVersion]:
        """Embeds texts; returns embeddings in order and the version that made all of them.

        Where no version is named it is the serving one, for embeddings of two versions cannot be compared. They are not
        recorded: no one can judge them.

        Args:
            asked: the model or version.
            texts: one or more.
            dimensions: how many of the first to keep; all when zero.
            truncate: whether a text that is too long is cut at its end.

        Raises:
            FailedPreconditionError: the version gives no embeddings.
            InvalidArgumentError: `dimensions` is more than there are, or a text must not be truncated.
        """
        asked = asked if asked.version else replace(asked, version=CHAMPION)
        choice = self.choose(
            asked,
            Task.TEXT_EMBEDDING,
            Task.TEXT_CLASSIFICATION,
            Task.MULTI_LABEL_CLASSIFICATION,
            Task.TOKEN_CLASSIFICATION,
        )
        _check_dimensions(choice.version, dimensions)
        try:
            rows = await self._server.embed(choice.version, texts)
        except NotLoadedError as error:
            choice = await self._another(choice, error)
            _check_dimensions(choice.version, dimensions)
            rows = await self._server.embed(choice.version, texts)
        if not truncate:
            _check_whole([(row, choice.version) for row in rows])
        return [row.shortened(dimensions) for row in rows] if dimensions else rows, choice.version

    async def generate(
        self, choice: Choice, prompt: Prompt, sampling: Sampling, keeping: Keeping = _KEEP
    ) -> AsyncGenerator[AnsweredPiece]:
        """Writes an answer, piece by piece; the last piece has a finish reason."""
        began = self._clock.monotonic()
        try:
            async with aclosing(self._written(choice, prompt, sampling, keeping, began)) as items:
                async for item in items:
                    yield item
        except Exception as error:
            self._failed(choice, "generate", error, began)
            raise

    async def _written(
        self, choice: Choice, prompt: Prompt, sampling: Sampling, keeping: Keeping, began: float
    ) -> AsyncGenerator[AnsweredPiece]:
        answer = new_answer()
        text: list[str] = []
        async with aclosing(self._pieces(choice, prompt, sampling)) as pieces:
            async for version, piece in pieces:
                item = AnsweredPiece(answer, version, piece)
                text.append(piece.text)
                ended = piece.finish_reason is not FinishReason.NONE
                if ended:
                    # Recorded before it is returned: feedback may follow at once.
                    captured = await self._captured(choice, answer, prompt, "".join(text), keeping)
                    latency_ms, now = (self._clock.monotonic() - began) * 1000, self._clock.now()
                    served = Served.of_generation(answer, version, piece, latency_ms, now)
                    by_route = replace(served, route_etag=choice.route_etag, user_slot=choice.user_slot)
                    self._served.add([replace(by_route, captured=captured)])
                    self._shadows.generated(choice.asked, prompt, sampling, answer)
                yield item
                if ended:
                    return
        name = model_name(choice.asked.model)
        raise InternalError(f"The answer of {name} ended without its last piece.", reason="CUT_OFF")

    async def _pieces(
        self, choice: Choice, prompt: Prompt, sampling: Sampling
    ) -> AsyncGenerator[tuple[RoutedVersion, Piece]]:
        try:
            async with aclosing(self._server.generate(choice.version, prompt, sampling)) as pieces:
                async for piece in pieces:
                    yield choice.version, piece
            return
        except NotLoadedError as error:
            choice = await self._another(choice, error)
        async with aclosing(self._server.generate(choice.version, prompt, sampling)) as pieces:
            async for piece in pieces:
                yield choice.version, piece

    async def _another(self, choice: Choice, error: NotLoadedError) -> Choice:
        """The choice by the route as it is now, or in a moment.

        Raises:
            NotLoadedError: the route says the same as before.
        """
        version = choice.version
        again = await self._table.choose_again(choice.asked, version, choice.user, version.task)
        if again is None:
            raise error
        return self._chosen(choice.asked, choice.user, again)

    def _failed(self, choice: Choice, method: str, error: Exception, began: float) -> None:
        """Notes that a version did not answer, unless the request was at fault."""
        if not is_fault_of_version(error):
            return
        latency_ms = (self._clock.monotonic() - began) * 1000
        served = Served.of_failure(choice.version, method, error, latency_ms, self._clock.now())
        self._served.add([replace(served, route_etag=choice.route_etag, user_slot=choice.user_slot)])

    async def _captured(
        self, choice: Choice, answer: str, prompt: Prompt, text: str, keeping: Keeping
    ) -> Captured | None:
        capture = self._capture.of(choice.asked.model, answer) if keeping.store else None
        return await capture.of(prompt, text, keeping.tenant, choice.user) if capture is not None else None


def _check_dimensions(version: RoutedVersion, dimensions: int) -> None:
    if not version.embedding_size:
        raise FailedPreconditionError(
            f"{version.name} gives no embeddings: it was built by an earlier release. Train the model again "
            "and publish that.",
            reason="NO_EMBEDDINGS",
            metadata={"model_version": version.name},
        )
    if dimensions > version.embedding_size:
        why = f"must be at most {version.embedding_size}, the dimensions of {version.name}"
        raise InvalidArgumentError(
            f"`dimensions` {why}.", reason="INVALID_FIELD", violations=[FieldViolation("dimensions", why)]
        )


def _check_whole(rows: Sequence[tuple[ReadText, RoutedVersion]]) -> None:
    """Refuses texts of which a part was left out, by the versions that read them."""
    violations = [
        FieldViolation(
            f"texts[{at}]",
            f"has {row.prompt_tokens + row.truncated_tokens} tokens, and {version.name} reads {row.prompt_tokens}",
        )
        for at, (row, version) in enumerate(rows)
        if row.truncated_tokens
    ]
    if violations:
        first = violations[0]
        raise InvalidArgumentError(
            f"`{first.field}` {first.description}. Shorten it, or let it be cut by `truncate`.",
            reason="TEXT_TOO_LONG",
            metadata={"model_version": next(version.name for row, version in rows if row.truncated_tokens)},
            violations=violations,
        )
