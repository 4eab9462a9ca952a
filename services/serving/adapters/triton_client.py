"""Asks Triton for answers over gRPC, async.

Each version is a Triton model of its own. One that left its route stays loaded for a while; a request that comes still
later is answered with `NotLoadedError`, and may be sent to another version. A generation has its own stream, whose
errors are texts: a stream that is to end by a status (`triton_grpc_error`) can crash Triton 2.51.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from services.kit.engine import INVALID
from services.kit.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    TidemillError,
)
from services.kit.grpc.client import connect
from services.kit.grpc.request_streams import RequestStream
from services.kit.grpc.server import MAX_MESSAGE_BYTES
from services.kit.prompts import NO_TOOLS, TOO_LONG
from services.serving.adapters.triton_errors import (
    is_not_loaded,
    queue_full,
    status_of_text,
    triton_unavailable,
)
from services.serving.adapters.triton_guard import GuardedRequest, TritonGuard
from services.serving.adapters.triton_liveness import Asked, Liveness
from services.serving.adapters.triton_streams import TritonStream
from services.serving.adapters.triton_tensors import (
    MAX_BATCH,
    TOKEN_COUNTS,
    add_prompt,
    add_request_id,
    add_sampling,
    add_texts,
    add_trace,
    add_turn,
    contents_of,
    departure_of,
    float_rows,
    once,
    piece_of,
    spans_of_text,
    texts_of,
    token_counts,
)
from services.serving.domain.answer import (
    CallerPriority,
    Embedded,
    FinishReason,
    Piece,
    Prompt,
    Recognized,
    Sampling,
    Scored,
)
from services.serving.domain.names import facts, shown
from services.serving.domain.route import RoutedVersion

_GENERATION_S = 600.0
_PREDICT_S = 60.0
# Batches of one call that wait in Triton: enough to keep it busy, and few enough that others come in between.
_CHUNKS_AT_ONCE = 8

T = TypeVar("T")


def open_triton(address: str, tls: tuple[Path, Path, Path] | None = None) -> grpc.aio.Channel:
    """A channel to Triton; create it inside the running event loop and close it at the end.

    Args:
        address: `host:port` or `unix:/path`.
        tls: certificate, key and authority for mutual TLS, on every connection but a Unix socket's.

    Raises:
        FailedPreconditionError: the files cannot be used; names the file.
    """
    return connect(
        address,
        tls,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ],
    )


class TritonClient:
    """Implements `services.serving.app.ports.InferenceServer`."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        liveness: Liveness,
        guard: TritonGuard,
        turn: Callable[[], CallerPriority] = CallerPriority,
    ) -> None:
        """`turn` is the present caller's; models that write let callers take turns."""
        self._turn = turn
        self._stub = GRPCInferenceServiceStub(channel)
        self._liveness = liveness
        self._guard = guard

    async def classify(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Scored]:
        """See the port."""
        rows = await self._read(version, texts, "scores", float_rows)
        return [Scored(read, left, tuple(scores)) for scores, read, left in rows]

    async def recognize(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Recognized]:
        """See the port."""
        rows = await self._read(version, texts, "spans_json", texts_of)
        return [Recognized(read, left, spans_of_text(spans)) for spans, read, left in rows]

    async def embed(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Embedded]:
        """See the port."""
        rows = await self._read(version, texts, "embedding", float_rows)
        return [Embedded(read, left, values) for values, read, left in rows]

    async def _read(
        self, version: RoutedVersion, texts: Sequence[str], output: str, rows_of: Callable[[bytes, int], Iterable[T]]
    ) -> list[tuple[T, int, int]]:
        """Each text's row of an output, with the tokens that were read of the text and those that were left out.

        Many texts are several requests, some at a time, which Triton batches as it sees fit.
        """
        model = version.server_model
        chunks = [texts[at : at + MAX_BATCH] for at in range(0, len(texts), MAX_BATCH)]
        turns = asyncio.Semaphore(_CHUNKS_AT_ONCE)
        with self._errors(model):
            async with self._guard.request(model, self._turn().caller) as guarded:
                parts = await asyncio.gather(*(self._ask(model, chunk, output, guarded, turns) for chunk in chunks))
        return [
            (row, read, left)
            for contents, chunk in zip(parts, chunks, strict=True)
            for row, (read, left) in zip(rows_of(contents[output], len(chunk)), token_counts(contents), strict=True)
        ]

    async def generate(self, version: RoutedVersion, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        """See the port."""
        model = version.server_model
        request = pb.ModelInferRequest(model_name=model)
        add_prompt(request, prompt)
        add_sampling(request, sampling)
        add_trace(request)
        add_turn(request, self._turn())
        add_request_id(request)
        with self._errors(model) as asked:
            async with self._guard.request(model, self._turn().caller) as guarded:
                answers = RequestStream(self._stub.ModelStreamInfer(once(request), timeout=_GENERATION_S))
                call = TritonStream(self._stub, answers, [departure_of(request)])
                guarded.watch(call)
                try:
                    async with self._liveness.watched(model, call) as stream:
                        try:
                            async for piece in self._pieces(model, call, asked):
                                stream.heard()
                                guarded.heard()
                                yield piece
                        except asyncio.CancelledError:
                            if stream.dead:
                                raise self._liveness.dead(model) from None
                            raise
                finally:
                    call.leave()

    async def _pieces(self, model: str, call: TritonStream, asked: Asked) -> AsyncIterator[Piece]:
        async for response in call:
            if response.error_message:
                raise self._failure(model, response.error_message, asked)
            piece = piece_of(response.infer_response)
            if piece.finish_reason is not FinishReason.NONE:
                # Triton's end of the stream follows at once; a caller may stop listening at the last piece.
                await anext(call, None)
            yield piece

    async def _ask(
        self, model: str, texts: Sequence[str], output: str, guarded: GuardedRequest, turns: asyncio.Semaphore
    ) -> dict[str, bytes]:
        request = pb.ModelInferRequest(model_name=model)
        add_texts(request, "text", texts, [len(texts), 1])
        add_trace(request)
        add_turn(request, self._turn())
        for name in (output, *TOKEN_COUNTS):
            request.outputs.add(name=name)
        asked = self._liveness.asked(model)
        async with turns:
            response = await guarded.answer(self._stub.ModelInfer(request, timeout=_PREDICT_S))
        contents = contents_of(response)
        if not contents:
            # What Triton returns for requests that a model's process was handling when it died: OK, and nothing in it.
            self._liveness.died(model, asked)
            raise self._liveness.dead(model)
        return contents

    @contextmanager
    def _errors(self, model: str) -> Iterator[Asked]:
        """Translates Triton's errors about a published model into the kit's; yields when it was asked."""
        asked = self._liveness.asked(model)
        try:
            yield asked
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, model, asked) from error

    def _translated(self, error: grpc.aio.AioRpcError, model: str, asked: Asked) -> TidemillError:
        code, details, metadata = error.code(), error.details() or "", facts(model)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return _refused(model, details)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceededError(f"{shown(model)} did not answer in time.", metadata=metadata)
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return FailedPreconditionError(details, reason="REFUSED_BY_TRITON", metadata=metadata)
        if (full := queue_full(model, details)) is not None:
            return full
        # Not the caller's fault: the version is in a route, or was, so Triton is about to load it, or it had to leave.
        if is_not_loaded(details, code):
            self._liveness.missing(model, asked)
            return self._liveness.not_loaded(model)
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return triton_unavailable(model, details)
        return self._failure(model, details, asked)

    def _failure(self, model: str, message: str, asked: Asked) -> TidemillError:
        """An error that Triton reports only as text."""
        details = status_of_text(message)[1]
        if message.startswith(INVALID):
            return _refused(model, details)
        if is_not_loaded(message):
            self._liveness.missing(model, asked)
            return self._liveness.not_loaded(model)
        if (full := queue_full(model, message)) is not None:
            return full
        if self._liveness.notice_death(model, message, asked):
            return self._liveness.dead(model, message)
        return InternalError(f"Triton failed on {shown(model)}: {details}", reason="TRITON_ERROR")


def _refused(model: str, details: str) -> InvalidArgumentError:
    """The error for a request that a model does not take."""
    reason, where = "REFUSED_BY_MODEL", None
    if details.startswith(TOO_LONG):
        reason, where = "CONTEXT_LENGTH_EXCEEDED", "conversation.messages"
    elif details == NO_TOOLS:
        reason, where = "TOOLS_UNSUPPORTED", "tools"
    violations = [FieldViolation(where, details)] if where is not None else []
    return InvalidArgumentError(details, reason=reason, metadata=facts(model), violations=violations)
