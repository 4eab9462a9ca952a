"""A caller who leaves a stream: the model is asked to stop, what still comes is read, and nothing is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    GRPCInferenceServiceStub,
    add_GRPCInferenceServiceServicer_to_server,
)

from services.kit.grpc.request_streams import RequestStream
from services.serving.adapters.triton_guard import Limits, TritonGuard
from services.serving.adapters.triton_liveness import Liveness
from services.serving.adapters.triton_streams import TritonStream
from services.serving.adapters.triton_tensors import GONE, REQUEST, add_request_id, add_turn, departure_of, once
from services.serving.domain.answer import CallerPriority
from tests.waiting import eventually


class Writer(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Writes for ever until it is asked to stop."""

    def __init__(self) -> None:
        self.written = self.cancelled = 0
        self.gone: list[str] = []
        self.knows_departures = True

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        request = await anext(aiter(requests))
        if GONE in request.parameters:
            self.gone.append(request.parameters[GONE].string_param)
            return
        try:
            while not (self.knows_departures and request.parameters[REQUEST].string_param in self.gone):
                self.written += 1
                yield pb.ModelStreamInferResponse()
                await asyncio.sleep(0.001)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise


class Deaths:
    def generation(self, model: str) -> int:
        return 0

    def report(self, model: str, generation: int) -> None:
        raise AssertionError("no one died")

    def back_s(self, model: str) -> float:
        raise AssertionError("no one died")


@pytest.fixture
async def writer() -> AsyncIterator[tuple[Writer, grpc.aio.Channel]]:
    server, servicer = grpc.aio.server(), Writer()
    add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, channel
    await server.stop(0)


def opened(channel: grpc.aio.Channel) -> TritonStream:
    stub, request = GRPCInferenceServiceStub(channel), pb.ModelInferRequest(model_name="m.1")
    add_request_id(request)
    return TritonStream(stub, RequestStream(stub.ModelStreamInfer(once(request))), [departure_of(request)])


async def test_a_caller_who_leaves_has_the_model_asked_to_stop(writer: tuple[Writer, grpc.aio.Channel]) -> None:
    servicer, channel = writer
    stream = opened(channel)

    async def read() -> None:
        try:
            async for _ in stream:
                pass
        finally:
            stream.leave()

    reader = asyncio.create_task(read())
    await eventually(lambda: servicer.written > 100)
    reader.cancel()
    await asyncio.wait((reader,))
    assert reader.cancelled()
    await eventually(stream.done)
    assert (len(servicer.gone), servicer.cancelled) == (1, 0)


async def test_a_caller_who_reads_nothing_gets_little_ahead(writer: tuple[Writer, grpc.aio.Channel]) -> None:
    servicer, channel = writer
    stream = opened(channel)
    await eventually(lambda: servicer.written > 64)
    await eventually(lambda: stream._room.locked())
    assert stream._responses.qsize() == 64
    stream.leave()
    await eventually(stream.done)
    assert servicer.cancelled == 0


async def test_a_model_that_does_not_stop_is_cancelled_in_the_end(
    writer: tuple[Writer, grpc.aio.Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    servicer, channel = writer
    servicer.knows_departures = False
    monkeypatch.setattr("services.serving.adapters.triton_streams._PATIENCE_S", 0.2)
    stream = opened(channel)
    assert await anext(stream) is not None
    stream.leave()
    await eventually(stream.done)
    await eventually(lambda: servicer.cancelled == 1)


async def test_what_a_caller_left_counts_until_it_has_ended(writer: tuple[Writer, grpc.aio.Channel]) -> None:
    servicer, channel = writer
    servicer.knows_departures = False
    deaths = Deaths()
    guard = TritonGuard(channel, Liveness(channel, deaths), deaths, Limits(waiting=1))
    async with guard.request("m.1") as guarded:
        stream = opened(channel)
        guarded.watch(stream)
        await anext(stream)
        stream.leave()
    waiting = guard._breakers["m.1"].waiting
    assert waiting.count == 1
    servicer.knows_departures = True
    await eventually(lambda: waiting.count == 0)


def test_no_caller_says_who_has_gone() -> None:
    request = pb.ModelInferRequest(model_name="m.1")
    request.parameters[GONE].string_param = request.parameters[REQUEST].string_param = "another's"
    add_turn(request, CallerPriority())
    add_request_id(request)
    assert GONE not in request.parameters
    assert request.parameters[REQUEST].string_param not in ("", "another's")
