"""Requests and responses of our models as tensors of the KServe V2 protocol."""

from __future__ import annotations

import json
import struct
import uuid
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from opentelemetry import propagate
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import deserialize_bytes_tensor

from services.kit.spans import Span
from services.serving.domain.answer import CallerPriority, FinishReason, Message, Piece, Prompt, Sampling, Token

TRACEPARENT = "traceparent"
# Parameters that the models read, see services.inference.triton_models.turns.
CALLER, BACKGROUND = "tidemill_caller", "tidemill_background"
# See services.inference.triton_models.departures.
REQUEST, GONE = "tidemill_request", "tidemill_gone"
PRIORITY, BACKGROUND_PRIORITY = "priority", 2
"""Triton's parameter, by which its queue of a classifier's batches is ordered, and the lowest; 1 is the highest."""
# Larger batches gain nothing on a CPU, and the first request of a batch waits for the last.
MAX_BATCH = 32
TOKEN_COUNTS = ("prompt_tokens", "truncated_tokens")
"""Outputs of a model that reads texts: tokens that it read, and those that it left out."""


async def once(request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferRequest]:
    """A stream of one request."""
    yield request


def add_texts(request: Any, name: str, texts: Sequence[str], shape: Sequence[int]) -> None:
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


def add_prompt(request: Any, prompt: Prompt) -> None:
    """Adds the prompt."""
    if prompt.text is not None:
        add_texts(request, "text", [prompt.text], [1])
        return
    messages = list(map(_message, prompt.conversation))
    add_texts(request, "messages_json", [json.dumps(messages, ensure_ascii=False)], [1])
    if prompt.tools:
        add_texts(request, "tools_json", [prompt.tools], [1])
        add_texts(request, "tool_choice", [prompt.tool_choice], [1])


def _message(message: Message) -> dict[str, Any]:
    """As chat templates read it: arguments are an object, not its text."""
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        found["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.calls
        ]
    if message.call_id:
        found["tool_call_id"] = message.call_id
    return found


def add_sampling(request: Any, sampling: Sampling) -> None:
    """Adds the sampling parameters; the model decides those that are not set."""
    if sampling.max_tokens:
        _add_number(request, "max_tokens", "INT32", "<i", sampling.max_tokens)
    if sampling.temperature:
        _add_number(request, "temperature", "FP32", "<f", sampling.temperature)
    if sampling.top_p:
        _add_number(request, "top_p", "FP32", "<f", sampling.top_p)
    if sampling.seed is not None:
        _add_number(request, "seed", "INT64", "<q", sampling.seed)
    if sampling.stop:
        add_texts(request, "stop", sampling.stop, [len(sampling.stop)])
    if sampling.top_k:
        _add_number(request, "top_k", "INT32", "<i", sampling.top_k)
    for name in ("frequency_penalty", "presence_penalty", "repetition_penalty"):
        if value := getattr(sampling, name):
            _add_number(request, name, "FP32", "<f", value)
    if sampling.json_schema:
        add_texts(request, "json_schema", [sampling.json_schema], [1])
    if sampling.logprobs:
        _add_number(request, "logprobs", "BOOL", "<?", True)


def add_trace(request: Any) -> None:
    """Adds the current span, the parent of the model's span."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    if TRACEPARENT in carrier:
        request.parameters[TRACEPARENT].string_param = carrier[TRACEPARENT]


def add_request_id(request: Any) -> None:
    """Adds an id that no one can guess, in place of what its caller may have written there."""
    request.parameters[REQUEST].string_param = uuid.uuid4().hex


def departure_of(request: Any) -> pb.ModelInferRequest:
    """The request that asks a model to stop answering another one, which has an id."""
    found = pb.ModelInferRequest(model_name=request.model_name)
    found.parameters[GONE].string_param = request.parameters[REQUEST].string_param
    return found


def add_turn(request: Any, turn: CallerPriority) -> None:
    """Adds whose request it is, in place of what its caller may have written there."""
    for name in (CALLER, BACKGROUND, PRIORITY, GONE):
        if name in request.parameters:
            del request.parameters[name]
    if turn.caller:
        request.parameters[CALLER].string_param = turn.caller
    if turn.background:
        request.parameters[BACKGROUND].bool_param = True
        request.parameters[PRIORITY].uint64_param = BACKGROUND_PRIORITY


def contents_of(response: Any) -> dict[str, bytes]:
    """Raw outputs by name."""
    return {output.name: raw for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)}


def piece_of(response: Any) -> Piece:
    """The piece of an answer in a response."""
    contents = contents_of(response)
    return Piece(
        text=_text(contents["text_delta"]),
        finish_reason=FinishReason(_text(contents["finish_reason"])),
        prompt_tokens=struct.unpack("<i", contents["prompt_tokens"])[0],
        completion_tokens=struct.unpack("<i", contents["completion_tokens"])[0],
        tokens=_tokens_of(contents),
        # A version that an earlier release loaded does not say it.
        truncated_tokens=struct.unpack("<i", contents.get("truncated_tokens", bytes(4)))[0],
    )


def _tokens_of(contents: dict[str, bytes]) -> tuple[Token, ...]:
    raw = contents.get("logprobs", b"")
    if not raw:
        return ()
    texts = deserialize_bytes_tensor(contents["tokens"])
    return tuple(
        Token(text.decode(), logprob) for text, (logprob,) in zip(texts, struct.iter_unpack("<f", raw), strict=True)
    )


def float_rows(raw: bytes, rows: int) -> Iterator[array[float]]:
    """The rows of a tensor of 32-bit floats."""
    values = array("f", raw)
    width = len(values) // rows
    return (values[at : at + width] for at in range(0, len(values), width))


def token_counts(contents: dict[str, bytes]) -> Iterator[tuple[int, int]]:
    """Of each text the tokens that were read, and those that were left out."""
    read, left = (array("i", contents[name]) for name in TOKEN_COUNTS)
    return zip(read, left, strict=True)


def texts_of(raw: bytes, _: int = 0) -> Iterator[str]:
    """The elements of a BYTES tensor."""
    at = 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        yield raw[at + 4 : at + 4 + length].decode()
        at += 4 + length


def spans_of_text(text: str) -> tuple[Span, ...]:
    """The spans that a model for token classification answers with."""
    return tuple(Span(**item) for item in json.loads(text))


def _text(raw: bytes) -> str:
    return raw[4:].decode()
