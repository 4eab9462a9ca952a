"""KServe V2 as it is passed on to Triton: answers come through, and a silent Triton is not waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub, add_GRPCInferenceServiceServicer_to_server

from services.kit.grpc.server import create_server
from services.kit.telemetry.metrics import RequestMetrics
from services.serving.adapters.triton_client import open_triton
from services.serving.adapters.triton_guard import TritonGuard
from services.serving.adapters.triton_liveness import Liveness
from services.serving.adapters.triton_v2 import TritonV2
from services.serving.app.routing import RoutingTable
from services.serving.domain.answer import Task
from services.serving.domain.route import Route, RoutedVersion
from services.serving.entrypoints.kserve import SERVICE, kserve_handlers
from tests.unit.serving.reports import Reports
from tests.unit.serving.test_triton_guard import QUICK, SilentTriton


class Streaming(SilentTriton):
    """Answers each request of a stream once."""

    unknown = False

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.unknown:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return pb.ModelMetadataResponse(name=request.name)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.unknown:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.model_name}'")
        return await super().ModelInfer(request, context)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in requests:
            if self.frozen.is_set():
                await asyncio.sleep(3600)
            answer = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
            yield pb.ModelStreamInferResponse(infer_response=answer)


@asynccontextmanager
async def _door(fake: Streaming) -> AsyncIterator[Any]:
    triton = grpc.aio.server()
    add_GRPCInferenceServiceServicer_to_server(fake, triton)
    behind = triton.add_insecure_port("127.0.0.1:0")
    await triton.start()
    channel = open_triton(f"127.0.0.1:{behind}")
    door = create_server(RequestMetrics("inference"))
    reports = Reports()
    liveness = Liveness(channel, reports)
    v2 = TritonV2(channel, liveness, TritonGuard(channel, liveness, reports, QUICK), table_of("m"))
    names = {path.rpartition("/")[2]: handler for path, handler in kserve_handlers(v2).items()}
    door.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, names),))
    port = door.add_insecure_port("127.0.0.1:0")
    await door.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as outside:
            yield GRPCInferenceServiceStub(outside)
    finally:
        await door.stop(None)
        await channel.close()
        await triton.stop(None)


def table_of(model: str) -> RoutingTable:
    """Routes of one published classifier."""
    table = RoutingTable()
    version = RoutedVersion(model, 1, Task.TEXT_CLASSIFICATION)
    table.replace([Route(model, datetime(2026, 1, 1, tzinfo=UTC), (version,))])
    return table


async def _requests(*ids: str) -> AsyncIterator[Any]:
    for name in ids:
        yield pb.ModelInferRequest(model_name="m", id=name)


async def test_answers_come_through_one_by_one_and_as_a_stream() -> None:
    async with _door(Streaming()) as stub:
        answer = await stub.ModelInfer(pb.ModelInferRequest(model_name="m"), timeout=30)
        assert answer.outputs[0].name == "scores"
        stream = stub.ModelStreamInfer(_requests("a", "b", "c"), timeout=30)
        assert [piece.infer_response.id async for piece in stream] == ["a", "b", "c"]
        assert [piece async for piece in stub.ModelStreamInfer(_requests(), timeout=30)] == []


async def test_a_frozen_triton_is_unavailable_at_both() -> None:
    fake = Streaming()
    async with _door(fake) as stub:
        fake.frozen.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(pb.ModelInferRequest(model_name="m"), timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.ModelStreamInfer(_requests("a"), timeout=60):
                pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_published_model_that_triton_does_not_know_yet_is_unavailable_and_another_not_found() -> None:
    """Triton starts without models, which are loaded again one by one."""
    fake = Streaming()
    fake.unknown = True
    async with _door(fake) as stub:
        for model, version, code in (
            ("m", "", grpc.StatusCode.UNAVAILABLE),
            ("m", "1", grpc.StatusCode.UNAVAILABLE),
            ("m", "9", grpc.StatusCode.NOT_FOUND),
            ("other", "", grpc.StatusCode.NOT_FOUND),
        ):
            for call in (
                stub.ModelInfer(pb.ModelInferRequest(model_name=model, model_version=version), timeout=30),
                stub.ModelMetadata(pb.ModelMetadataRequest(name=model, version=version), timeout=30),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is code, (model, version, caught.value.details())
