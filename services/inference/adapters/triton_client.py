"""Asks Triton for answers over gRPC, async.

Requests name no version: Triton answers with the one that its configuration makes available, and swaps it in one step,
so that no request falls between two versions; the response tells which one answered. A generation has a stream of its
own: closing it cancels the generation in Triton, and one caller's error ends nobody else's stream.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from opentelemetry import propagate
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from services.inference.adapters.triton_config import MAX_BATCH
from services.inference.domain.model import FinishReason, Piece, Prompt, Sampling
from services.kit.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    TidemillError,
    UnavailableError,
)
from services.kit.grpc.server import MAX_MESSAGE_BYTES

TRACEPARENT = "traceparent"
# With it Triton ends a stream by a status, not by a text in a response.
_REAL_STATUS = (("triton_grpc_error", "true"),)
# How Triton begins its text about a model that it has not loaded (yet).
_NOT_LOADED = "Request for unknown model"
# How it tells that the process of a model has died: it neither starts it again nor calls the model unready (2.51).
_DEAD = ("Stub process '", "is not healthy.")
_GENERATION_S = 600.0
_PREDICT_S = 60.0


def open_triton(address: str) -> grpc.aio.Channel:
    """A channel to Triton; create it inside the running event loop and close it at the end."""
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ],
    )


class TritonClient:
    """Implements `services.inference.app.ports.InferenceServer`."""

    def __init__(self, channel: grpc.aio.Channel, suspect: Callable[[str], None]) -> None:
        """Args:
        channel: to Triton.
        suspect: is told of a model whose process in Triton has died; Triton itself goes on calling it ready.
        """
        self._stub = GRPCInferenceServiceStub(channel)
        self._suspect = suspect

    async def classify(self, model: str, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        """See the port. Many texts are several requests side by side, which Triton batches as it sees fit."""
        chunks = [texts[at : at + MAX_BATCH] for at in range(0, len(texts), MAX_BATCH)]
        answers = await asyncio.gather(*(self._classify(model, chunk) for chunk in chunks))
        if len({number for _, number in answers}) > 1:
            # A new version came up in between: one answer is of one version, so all is asked again.
            return await self.classify(model, texts)
        return [row for rows, _ in answers for row in rows], answers[0][1]

    async def generate(self, model: str, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        """See the port."""
        request = pb.ModelInferRequest(model_name=model)
        _add_prompt(request, prompt)
        _add_sampling(request, sampling)
        _add_trace(request)
        call = self._stub.ModelStreamInfer(_once(request), timeout=_GENERATION_S, metadata=_REAL_STATUS)
        try:
            with self._errors(model):
                responses = aiter(call)
                async for response in responses:
                    if response.error_message:
                        raise self._failure(model, response.error_message)
                    piece = _piece(response.infer_response)
                    if piece.finish_reason is not FinishReason.NONE:
                        # Triton's end of the stream follows at once; a caller may stop listening at the last piece.
                        await anext(responses, None)
                    yield piece
        finally:
            # Ends the generation in Triton when the caller has gone.
            if not call.done():
                call.cancel()

    async def _classify(self, model: str, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        request = pb.ModelInferRequest(model_name=model)
        _add_texts(request, "text", texts, [len(texts), 1])
        _add_trace(request)
        request.outputs.add(name="scores")
        with self._errors(model):
            response = await self._stub.ModelInfer(request, timeout=_PREDICT_S)
        scores = np.frombuffer(response.raw_output_contents[0], dtype="<f4").reshape(len(texts), -1)
        return scores.tolist(), int(response.model_version)

    @contextmanager
    def _errors(self, model: str) -> Iterator[None]:
        """Raises what Triton answers about a published model as the kit's errors."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, model) from error

    def _translated(self, error: grpc.aio.AioRpcError, model: str) -> TidemillError:
        code, details, metadata = error.code(), error.details() or "", {"model": f"models/{model}"}
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidArgumentError(details, reason="REFUSED_BY_MODEL", metadata=metadata)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceededError(f"models/{model} did not answer in time.", metadata=metadata)
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return FailedPreconditionError(details, reason="REFUSED_BY_TRITON", metadata=metadata)
        # NOT_FOUND is no fault of the caller's: the model is published, so Triton is about to load it.
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.CANCELLED):
            return _away(model, details)
        return self._failure(model, details)

    def _failure(self, model: str, message: str) -> TidemillError:
        """An error that Triton tells by a text only."""
        if is_dead(message):
            self._suspect(model)
            return _away(model, message)
        if message.startswith(_NOT_LOADED):
            return _away(model, message)
        return InternalError(f"Triton failed on models/{model}: {message}", reason="TRITON_ERROR")


def is_dead(message: str) -> bool:
    """Whether Triton says that the process of a model has died."""
    return message.startswith(_DEAD[0]) and message.endswith(_DEAD[1])


def _away(model: str, details: str) -> UnavailableError:
    return UnavailableError(
        f"Triton does not answer for models/{model} now: {details}",
        reason="TRITON_UNAVAILABLE",
        metadata={"model": f"models/{model}"},
        retry_after_s=1.0,
    )


async def _once(request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferRequest]:
    yield request


def _add_texts(request: Any, name: str, texts: Sequence[str], shape: Sequence[int]) -> None:
    """A BYTES tensor: each element after its length in 4 little-endian bytes."""
    request.inputs.add(name=name, datatype="BYTES", shape=shape)
    parts: list[bytes] = []
    for text in texts:
        data = text.encode()
        parts += (struct.pack("<I", len(data)), data)
    request.raw_input_contents.append(b"".join(parts))


def _add_number(request: Any, name: str, datatype: str, form: str, value: float) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=[1])
    request.raw_input_contents.append(struct.pack(form, value))


def _add_prompt(request: Any, prompt: Prompt) -> None:
    if prompt.text is not None:
        _add_texts(request, "text", [prompt.text], [1])
        return
    messages = [{"role": message.role, "content": message.content} for message in prompt.conversation]
    _add_texts(request, "messages_json", [json.dumps(messages, ensure_ascii=False)], [1])


def _add_sampling(request: Any, sampling: Sampling) -> None:
    if sampling.max_tokens:
        _add_number(request, "max_tokens", "INT32", "<i", sampling.max_tokens)
    if sampling.temperature:
        _add_number(request, "temperature", "FP32", "<f", sampling.temperature)
    if sampling.top_p:
        _add_number(request, "top_p", "FP32", "<f", sampling.top_p)
    if sampling.seed is not None:
        _add_number(request, "seed", "INT64", "<q", sampling.seed)
    if sampling.stop:
        _add_texts(request, "stop", sampling.stop, [len(sampling.stop)])


def _add_trace(request: Any) -> None:
    """Names the present span, whose child the model's own span becomes."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    if TRACEPARENT in carrier:
        request.parameters[TRACEPARENT].string_param = carrier[TRACEPARENT]


def _piece(response: Any) -> Piece:
    contents = {output.name: raw for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)}
    return Piece(
        text=_text(contents["text_delta"]),
        finish_reason=FinishReason(_text(contents["finish_reason"])),
        prompt_tokens=struct.unpack("<i", contents["prompt_tokens"])[0],
        completion_tokens=struct.unpack("<i", contents["completion_tokens"])[0],
        version=int(response.model_version),
    )


def _text(raw: bytes) -> str:
    return raw[4:].decode()
