"""Predict, Generate and StreamGenerate of the contract: map in, one call, map out. For every door."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc
from opentelemetry import trace
from tidemill.inference.v1 import inference_service_pb2 as pb

from services.kit.errors import InternalError
from services.kit.ids import new_id
from services.kit.telemetry import schema
from services.serving.app.ports import Meter
from services.serving.app.serving import AnsweredPiece, Choice, Keeping, Serving
from services.serving.domain.answer import FinishReason, Piece, Prompt, Sampling, Task, Token, ToolCall
from services.serving.domain.names import reference_of
from services.serving.domain.tool_calls import CallReader
from services.serving.entrypoints import mapping

SERVICE = "tidemill.inference.v1.InferenceService"


USER = "x-user-id"
"""Metadata, and header, with the user whom an answer is for: one user gets the answers of one version."""
_PREDICTING = (Task.TEXT_CLASSIFICATION, Task.MULTI_LABEL_CLASSIFICATION, Task.TOKEN_CLASSIFICATION)
VERSION, ROLE = "x-model-version", "x-model-role"
"""Trailing metadata, and headers, with the version that answered and its role."""


class Answers:
    """The calls, message in and message out; messages must be valid. The current span gets the answer's attributes."""

    def __init__(self, serving: Serving, tenant: Callable[[], str] = lambda: "", meter: Meter = lambda: None) -> None:
        """Args:
        serving: answers.
        tenant: the present caller's; captured answers are kept with it.
        meter: of the present caller's tokens; of an answer that breaks off, what was read and written
            until then counts.
        """
        self._serving, self._tenant, self._meter = serving, tenant, meter

    def choose(self, request: pb.PredictRequest | pb.GenerateRequest | pb.StreamGenerateRequest, user: str) -> Choice:
        """The version that is to answer a request; `user` may be empty."""
        tasks = _PREDICTING if isinstance(request, pb.PredictRequest) else (Task.GENERATION,)
        return self._serving.choose(reference_of(request.model), *tasks, user=user)

    async def predict(self, request: pb.PredictRequest, user: str = "") -> pb.PredictResponse:
        """Classifies texts."""
        spend = self._meter()
        found, version = await self._serving.predict(
            self.choose(request, user), list(request.texts), self._keeping(request), truncate=mapping.truncates(request)
        )
        trace.get_current_span().set_attribute(schema.MODEL_VERSION, version.name)
        if spend is not None:
            spend(sum(item.classified.text.prompt_tokens for item in found))
        return pb.PredictResponse(
            predictions=[mapping.prediction_to(item) for item in found], model_version=version.name, role=version.role
        )

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Embeds texts."""
        spend = self._meter()
        found, version = await self._serving.embed(
            reference_of(request.model),
            list(request.texts),
            dimensions=request.dimensions,
            truncate=mapping.truncates(request),
        )
        trace.get_current_span().set_attribute(schema.MODEL_VERSION, version.name)
        if spend is not None:
            spend(sum(item.prompt_tokens for item in found))
        return pb.EmbedResponse(
            embeddings=[mapping.embedding_to(item) for item in found], model_version=version.name, role=version.role
        )

    async def generate(
        self, request: pb.GenerateRequest, user: str = "", choice: Choice | None = None, *, again: bool = False
    ) -> pb.GenerateResponse:
        """Writes an answer and returns it complete.

        Args:
            request: what is asked.
            user: whose version answers, unless `choice` is one.
            choice: the version that answers.
            again: whether it is a further answer to a prompt whose tokens were counted with the first.
        """
        text: list[str] = []
        tokens: list[Token] = []
        calls: list[ToolCall] = []
        last: AnsweredPiece | None = None
        async with aclosing(self._pieces(request, choice or self.choose(request, user), again)) as pieces:
            async for last, parts in pieces:
                text.append(last.piece.text)
                tokens += last.piece.tokens
                calls += parts
        if last is None:
            raise InternalError("The model gave no answer.", reason="EMPTY_ANSWER")
        whole = [replace(calls[0], arguments="".join(part.arguments for part in calls))] if calls else []
        return mapping.whole_to("".join(text), tokens, last, whole)

    async def stream(
        self, request: pb.StreamGenerateRequest, choice: Choice, *, again: bool = False
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """Writes an answer, piece by piece; `again` as in `generate`."""
        async with aclosing(self._pieces(request, choice, again)) as pieces:
            async for piece, calls in pieces:
                yield mapping.piece_to(piece, calls)

    async def _pieces(
        self, request: pb.GenerateRequest | pb.StreamGenerateRequest, choice: Choice, again: bool
    ) -> AsyncGenerator[tuple[AnsweredPiece, Sequence[ToolCall]]]:
        """Pieces of the answer, with parts of the call of a function."""
        span = trace.get_current_span()
        span.set_attribute(schema.GEN_AI_MODEL, choice.asked.model)
        sampling = mapping.sampling_from(request.sampling)
        shown, keeping = mapping.prompt_from(request), self._keeping(request)
        reader = _CallsOf(CallReader()) if shown.tools else None
        async with aclosing(self._generated(choice, shown, sampling, keeping, again)) as pieces:
            async for item in pieces:
                if item.piece.finish_reason:
                    span.set_attributes(
                        {
                            schema.ANSWER: item.answer,
                            schema.MODEL_VERSION: item.version.name,
                            schema.GEN_AI_INPUT_TOKENS: item.piece.prompt_tokens,
                            schema.GEN_AI_OUTPUT_TOKENS: item.piece.completion_tokens,
                        }
                    )
                yield (item, ()) if reader is None else reader.read(item)

    async def _generated(
        self, choice: Choice, prompt: Prompt, sampling: Sampling, keeping: Keeping, again: bool
    ) -> AsyncGenerator[AnsweredPiece]:
        """An answer whose tokens are counted."""
        spend = self._meter()
        piece: Piece | None = None
        try:
            async with aclosing(self._serving.generate(choice, prompt, sampling, keeping)) as items:
                async for item in items:
                    piece = item.piece
                    yield item
        finally:
            if spend is not None and piece is not None:
                spend(piece.completion_tokens + (0 if again else piece.prompt_tokens))

    def _keeping(self, request: pb.PredictRequest | pb.GenerateRequest | pb.StreamGenerateRequest) -> Keeping:
        return Keeping(request.store if request.HasField("store") else True, self._tenant())


class _CallsOf:
    """Takes the call of a function out of the pieces of one answer, and names it."""

    def __init__(self, reader: CallReader) -> None:
        self._reader, self._id = reader, f"call_{new_id()}"

    def read(self, item: AnsweredPiece) -> tuple[AnsweredPiece, Sequence[ToolCall]]:
        """A piece with its text alone, and the parts of the call in it."""
        piece = item.piece
        text, deltas = self._reader.push(piece.text)
        if piece.finish_reason and not self._reader.complete:
            rest, more = self._reader.flush()
            text, deltas = text + rest, [*deltas, *more]
        reason = FinishReason.TOOL_CALLS if piece.finish_reason and self._reader.complete else piece.finish_reason
        calls = [ToolCall(self._id if delta.name else "", delta.name, delta.arguments) for delta in deltas]
        return replace(item, piece=replace(piece, text=text, finish_reason=reason)), calls


def user_of(context: Any) -> str:
    """The user whom a call is for; empty where its metadata names none."""
    return next((str(value) for key, value in context.invocation_metadata() or () if key == USER), "")


def note_version(context: Any, version: str, role: str) -> None:
    """Says in the trailing metadata which version answered."""
    context.set_trailing_metadata(((VERSION, version), (ROLE, role)))


def answer_handlers(answers: Answers) -> Mapping[str, Any]:
    """GRPC handlers of the methods, by path."""

    async def predict(request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        response = await answers.predict(request, user_of(context))
        note_version(context, response.model_version, response.role)
        return response

    async def embed(request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        response = await answers.embed(request)
        note_version(context, response.model_version, response.role)
        return response

    async def generate(request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        response = await answers.generate(request, user_of(context))
        note_version(context, response.model_version, response.role)
        return response

    async def stream(
        request: pb.StreamGenerateRequest, context: Any
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        async with aclosing(answers.stream(request, answers.choose(request, user_of(context)))) as pieces:
            async for piece in pieces:
                yield piece
        note_version(context, piece.model_version, piece.role)

    return {
        f"/{SERVICE}/Predict": grpc.unary_unary_rpc_method_handler(
            predict,
            request_deserializer=pb.PredictRequest.FromString,
            response_serializer=pb.PredictResponse.SerializeToString,
        ),
        f"/{SERVICE}/Embed": grpc.unary_unary_rpc_method_handler(
            embed,
            request_deserializer=pb.EmbedRequest.FromString,
            response_serializer=pb.EmbedResponse.SerializeToString,
        ),
        f"/{SERVICE}/Generate": grpc.unary_unary_rpc_method_handler(
            generate,
            request_deserializer=pb.GenerateRequest.FromString,
            response_serializer=pb.GenerateResponse.SerializeToString,
        ),
        f"/{SERVICE}/StreamGenerate": grpc.unary_stream_rpc_method_handler(
            stream,
            request_deserializer=pb.StreamGenerateRequest.FromString,
            response_serializer=pb.StreamGenerateResponse.SerializeToString,
        ),
    }
