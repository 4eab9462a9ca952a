"""The client against a server that speaks Triton's protocol and does what the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

from services.kit.engine import QUEUE_FULL
from services.kit.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    TidemillError,
    UnavailableError,
)
from services.kit.prompts import TOO_LONG
from services.serving.adapters.triton_client import TritonClient, open_triton
from services.serving.adapters.triton_guard import Limits, TritonGuard
from services.serving.adapters.triton_liveness import Liveness
from services.serving.adapters.triton_tensors import GONE
from services.serving.domain.answer import Message, Prompt, Sampling
from tests.unit.serving.reports import Reports
from tests.unit.serving.test_triton_guard import version
from tests.waiting import eventually

DEAD = "Stub process 'm.1_0_0' is not healthy."
REFUSED = "Give exactly one of `text` and `messages_json`, with one element."


class FakeTriton(GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient has no types
    """Streams stay silent until their caller leaves; a request without inputs, the probe, gets `probe_answer`."""

    def __init__(self) -> None:
        self.probe_answer = REFUSED
        self.probes = 0
        self.empty = False
        self.speak = asyncio.Event()
        self.failure = (grpc.StatusCode.INTERNAL, "")
        self.left: list[str] = []
        self.cancelled = 0
        self.requests: list[Any] = []

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.empty:
            return pb.ModelInferResponse(model_name=request.model_name, model_version="1")
        await context.abort(*self.failure)
        raise AssertionError("unreachable: abort raises")

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in requests:
            if GONE in request.parameters:
                self.left.append(request.model_name)
                self.speak.set()
                return
            if not request.inputs:
                self.probes += 1
                yield pb.ModelStreamInferResponse(error_message=self.probe_answer)
                return
            self.requests.append(request)
            try:
                await self.speak.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            yield pb.ModelStreamInferResponse(infer_response=_last_piece())


def _last_piece() -> Any:
    response = pb.ModelInferResponse(model_name="m", model_version="3")
    contents = {
        "text_delta": b"\x02\x00\x00\x00hi",
        "finish_reason": b"\x04\x00\x00\x00stop",
        "prompt_tokens": (7).to_bytes(4, "little"),
        "completion_tokens": (1).to_bytes(4, "little"),
    }
    for name, raw in contents.items():
        response.outputs.add(name=name)
        response.raw_output_contents.append(raw)
    return response


@asynccontextmanager
async def _client(fake: FakeTriton, suspected: list[str], limits: Limits | None = None) -> AsyncIterator[TritonClient]:
    server = grpc.aio.server()
    add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = open_triton(f"127.0.0.1:{port}")
    try:
        reports = Reports(suspected)
        liveness = Liveness(channel, reports, silence_s=0.05)
        yield TritonClient(channel, liveness, TritonGuard(channel, liveness, reports, limits))
    finally:
        await channel.close()
        await server.stop(None)


async def test_a_silent_stream_of_a_dead_model_ends() -> None:
    fake, suspected = FakeTriton(), list[str]()
    fake.probe_answer = DEAD
    async with _client(fake, suspected) as client:
        with pytest.raises(UnavailableError, match="died") as caught:
            async for _ in client.generate(version("m"), Prompt(text="x"), Sampling()):
                pass
    assert caught.value.retry_after_s == Reports().back_s("m.1")
    assert suspected == ["m.1"]


async def test_a_silent_stream_of_a_living_model_is_waited_for() -> None:
    fake, suspected = FakeTriton(), list[str]()
    async with _client(fake, suspected) as client:
        pieces = asyncio.create_task(_all(client))
        await eventually(lambda: fake.probes >= 3)
        assert not pieces.done()
        fake.speak.set()
        (piece,) = await pieces
    assert (piece.text, piece.finish_reason) == ("hi", "stop")
    assert (piece.prompt_tokens, piece.completion_tokens) == (7, 1)
    assert suspected == []


async def _all(client: TritonClient) -> list[Any]:
    return [piece async for piece in client.generate(version("m"), Prompt(text="x"), Sampling())]


async def test_a_death_notice_ends_older_streams_of_the_same_model_only() -> None:
    fake, suspected = FakeTriton(), list[str]()
    fake.failure = (grpc.StatusCode.INTERNAL, DEAD)
    async with _client(fake, suspected) as client:
        mine = asyncio.create_task(_all(client))
        other = asyncio.create_task(_of_other(client))
        await eventually(lambda: len(fake.requests) == 2)
        with pytest.raises(UnavailableError):
            await client.classify(version("m"), ["x"])
        with pytest.raises(UnavailableError, match="died"):
            await mine
        assert not other.done()
        fake.speak.set()
        await other
    assert suspected == ["m.1"]


async def _of_other(client: TritonClient) -> list[Any]:
    return [piece async for piece in client.generate(version("other"), Prompt(text="x"), Sampling())]


async def test_an_answer_with_nothing_in_it_is_of_a_process_that_died() -> None:
    fake, suspected = FakeTriton(), list[str]()
    fake.empty = True
    async with _client(fake, suspected) as client:
        with pytest.raises(UnavailableError, match="died while it answered") as caught:
            await client.classify(version("m"), ["x"])
    assert caught.value.retry_after_s == Reports().back_s("m.1")
    assert suspected == ["m.1"]


async def test_a_caller_that_leaves_has_the_stream_ended_and_not_cancelled() -> None:
    fake = FakeTriton()
    async with _client(fake, []) as client:
        async with aclosing(client.generate(version("m"), Prompt(text="x"), Sampling())) as pieces:
            reading = asyncio.create_task(anext(pieces))
            await eventually(lambda: bool(fake.requests))
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        await eventually(lambda: bool(fake.left))
    assert (fake.left, fake.cancelled) == (["m.1"], 0)


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "shape", InvalidArgumentError),
        (grpc.StatusCode.INVALID_ARGUMENT, f"{TOO_LONG} 300 tokens; …", InvalidArgumentError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", DeadlineExceededError),
        (grpc.StatusCode.FAILED_PRECONDITION, "not now", FailedPreconditionError),
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model", UnavailableError),
        (grpc.StatusCode.UNAVAILABLE, "connection refused", UnavailableError),
        (grpc.StatusCode.UNAVAILABLE, f"256 {QUEUE_FULL} 12 s.", ResourceExhaustedError),
        (grpc.StatusCode.INTERNAL, "Request for unknown model: 'm' has no available versions", UnavailableError),
        (grpc.StatusCode.INTERNAL, "a defect", InternalError),
    ],
)
async def test_what_triton_answers_becomes_an_error_of_ours(
    code: grpc.StatusCode, details: str, kind: type[TidemillError]
) -> None:
    fake, suspected = FakeTriton(), list[str]()
    fake.failure = (code, details)
    async with _client(fake, suspected) as client:
        with pytest.raises(kind) as caught:
            await client.classify(version("m"), ["x"])
    # What Triton lacks is loaded before what no one asks for.
    missing = "unknown model" in details
    assert suspected == (["m.1"] if missing else [])
    assert (caught.value.retry_after_s == Reports().back_s("m.1")) is missing
    assert (caught.value.reason == "CONTEXT_LENGTH_EXCEEDED") == details.startswith(TOO_LONG)


async def test_a_request_says_what_is_set_and_no_more() -> None:
    fake = FakeTriton()
    fake.speak.set()
    sampling = Sampling(max_tokens=5, temperature=0.5, top_p=0.9, seed=0, stop=("a", "b"))
    talk = Prompt(conversation=(Message("user", "房间"),))
    async with _client(fake, []) as client:
        for prompt, how in ((Prompt(text="x"), Sampling()), (talk, sampling)):
            async for _ in client.generate(version("m"), prompt, how):
                pass
    plain, full = ([(i.name, i.datatype, list(i.shape)) for i in request.inputs] for request in fake.requests)
    assert plain == [("text", "BYTES", [1])]
    assert full == [
        ("messages_json", "BYTES", [1]),
        ("max_tokens", "INT32", [1]),
        ("temperature", "FP32", [1]),
        ("top_p", "FP32", [1]),
        ("seed", "INT64", [1]),
        ("stop", "BYTES", [2]),
    ]
    assert "房间" in fake.requests[1].raw_input_contents[0][4:].decode()
