"""What counts as a failure of a service: its own faults, not a caller that went away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1 import pipeline_service_pb2_grpc as stubs

from services.kit.errors import NotFoundError
from services.kit.grpc.server import create_server
from services.kit.telemetry.metrics import RequestMetrics
from tests.grpc_servers import serving
from tests.waiting import eventually

_SERVICE = "/tidemill.pipeline.v1.PipelineService/"


class Servicer(stubs.PipelineServiceServicer):
    """A cycle that never ends, one that is not there, and one that breaks."""

    def __init__(self) -> None:
        self.cancelling = asyncio.Event()

    async def WatchCycle(self, request: Any, context: Any) -> AsyncIterator[pb.WatchCycleResponse]:  # noqa: N802
        while True:
            yield pb.WatchCycleResponse()
            await asyncio.sleep(0.01)

    async def GetCycle(self, request: Any, context: Any) -> pb.GetCycleResponse:  # noqa: N802
        raise NotFoundError("none")

    async def CancelCycle(self, request: Any, context: Any) -> pb.CancelCycleResponse:  # noqa: N802
        self.cancelling.set()
        await asyncio.sleep(60)
        raise AssertionError("unreachable")

    async def ListCycles(self, request: Any, context: Any) -> pb.ListCyclesResponse:  # noqa: N802
        raise RuntimeError("a defect")


async def test_a_caller_that_disconnects_is_not_a_fault_of_the_service() -> None:
    metrics = RequestMetrics("test")
    server = create_server(metrics, default_deadline_s=30)
    servicer = Servicer()  # type: ignore[abstract]
    stubs.add_PipelineServiceServicer_to_server(servicer, server)

    def counted(method: str, code: str) -> float:
        labels = {"service_name": "test", "endpoint": _SERVICE + method, "code": code}
        return metrics.registry.get_sample_value("requests_total", labels) or 0.0

    async def until(method: str, code: str) -> None:
        await eventually(lambda: counted(method, code), f"{code} of {method}")

    name = "pipelines/a/cycles/b"
    async with serving(server) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = stubs.PipelineServiceStub(channel)
        watch = stub.WatchCycle(pb.WatchCycleRequest(name=name))
        await watch.read()
        watch.cancel()
        await until("WatchCycle", "CANCELLED")
        cancel = stub.CancelCycle(pb.CancelCycleRequest(name=name))
        async with asyncio.timeout(60):
            await servicer.cancelling.wait()
        cancel.cancel()
        await until("CancelCycle", "CANCELLED")
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetCycle(pb.GetCycleRequest(name=name))
        await until("GetCycle", "NOT_FOUND")  # the answer may arrive before it is counted
        assert metrics.registry.get_sample_value("error_rate", {"service_name": "test"}) == 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListCycles(pb.ListCyclesRequest())
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "a defect" not in (caught.value.details() or "")
        await until("ListCycles", "INTERNAL")
        assert metrics.registry.get_sample_value("error_rate", {"service_name": "test"}) == 0.25
