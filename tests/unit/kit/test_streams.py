"""A caller who hangs up between two responses: the stream ends in the task and the context that it ran in."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1 import pipeline_service_pb2_grpc as stubs

from services.kit.grpc.server import create_server
from services.kit.telemetry.metrics import RequestMetrics
from tests.grpc_servers import serving
from tests.waiting import eventually

CALLERS = 50


class Endless(stubs.PipelineServiceServicer):
    """Streams without end, in a span; says in which task each stream began and ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[asyncio.Task[Any] | None, asyncio.Task[Any] | None]] = []
        self._tracer = TracerProvider().get_tracer("test")

    async def WatchCycle(self, request: Any, context: Any) -> AsyncIterator[pb.WatchCycleResponse]:  # noqa: N802
        began = asyncio.current_task()
        with self._tracer.start_as_current_span("stream"):
            try:
                while True:
                    yield pb.WatchCycleResponse()
            finally:
                self.ended.append((began, asyncio.current_task()))


@pytest.mark.parametrize("traced", [True, False])
async def test_a_stream_is_closed_in_its_own_task_when_its_caller_hangs_up(
    traced: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider())
    endless = Endless()  # type: ignore[abstract]
    server = create_server(RequestMetrics("test", CollectorRegistry()), traced=traced)
    stubs.add_PipelineServiceServicer_to_server(endless, server)
    with caplog.at_level(logging.ERROR):
        async with serving(server) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = stubs.PipelineServiceStub(channel)
            for _ in range(CALLERS):
                call = stub.WatchCycle(pb.WatchCycleRequest(name="pipelines/a/cycles/b"))
                await call.read()
                call.cancel()
            await eventually(lambda: len(endless.ended) == CALLERS, "the end of all streams")
            gc.collect()
    assert all(began is ended for began, ended in endless.ended)
    assert [record.getMessage() for record in caplog.records] == []
