# ruff: noqa: N802 - the methods bear the names of the contract
"""PipelineService over gRPC: map in, one call, map out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from opentelemetry import propagate
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1 import pipeline_service_pb2_grpc as grpc_stubs

from services.kit.grpc.paging import checked_token
from services.kit.ids import ID_PATTERN
from services.pipeline.app.cycles import Cycles
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.domain.cycle import Cycle
from services.pipeline.entrypoints import mapping

_PAGE = 50
_WATCH_PAUSE_S = 0.25


class PipelineServicer(grpc_stubs.PipelineServiceServicer):
    """Implements `tidemill.pipeline.v1.PipelineService`."""

    def __init__(self, cycles: Cycles, feedback: FeedbackService) -> None:
        self._cycles, self._feedback = cycles, feedback

    async def CreateCycle(self, request: pb.CreateCycleRequest, context: Any) -> pb.CreateCycleResponse:
        """Starts a cycle."""
        cycle = await self._cycles.create(mapping.spec_from(request.spec), request.request_id, _traceparent())
        return pb.CreateCycleResponse(cycle=mapping.cycle_to(cycle))

    async def GetCycle(self, request: pb.GetCycleRequest, context: Any) -> pb.GetCycleResponse:
        """Reads a cycle."""
        return pb.GetCycleResponse(cycle=mapping.cycle_to(await self._cycles.get(request.name)))

    async def ListCycles(self, request: pb.ListCyclesRequest, context: Any) -> pb.ListCyclesResponse:
        """Lists cycles; the page token is the last id."""
        size = request.page_size or _PAGE
        pipeline = request.pipeline.removeprefix("pipelines/")
        found = await self._cycles.page(pipeline, checked_token(request.page_token, ID_PATTERN), size + 1)
        token = found[size - 1].cycle_id if len(found) > size else ""
        return pb.ListCyclesResponse(cycles=[mapping.cycle_to(c) for c in found[:size]], next_page_token=token)

    async def CancelCycle(self, request: pb.CancelCycleRequest, context: Any) -> pb.CancelCycleResponse:
        """Stops a cycle."""
        return pb.CancelCycleResponse(cycle=mapping.cycle_to(await self._cycles.cancel(request.name)))

    async def WatchCycle(self, request: pb.WatchCycleRequest, context: Any) -> AsyncIterator[pb.WatchCycleResponse]:
        """Sends the cycle now, at each change, and ends with its final state."""
        sent: Cycle | None = None
        while sent is None or not sent.state.final:
            cycle = await self._cycles.get(request.name)
            if cycle != sent:
                yield pb.WatchCycleResponse(cycle=mapping.cycle_to(cycle))
                sent = cycle
            else:
                await asyncio.sleep(_WATCH_PAUSE_S)

    async def RecordFeedback(self, request: pb.RecordFeedbackRequest, context: Any) -> pb.RecordFeedbackResponse:
        """Records a judgement."""
        kept = await asyncio.to_thread(
            self._feedback.record,
            request.answer,
            request.rating,
            request.correction,
            request.author,
            request.request_id,
            _traceparent(),
        )
        return pb.RecordFeedbackResponse(feedback=mapping.feedback_to(kept))

    async def ListFeedback(self, request: pb.ListFeedbackRequest, context: Any) -> pb.ListFeedbackResponse:
        """Lists feedback; the page token is the last id."""
        size = request.page_size or _PAGE
        found = await asyncio.to_thread(
            self._feedback.page, request.model, checked_token(request.page_token, ID_PATTERN), size + 1
        )
        token = found[size - 1].feedback_id if len(found) > size else ""
        return pb.ListFeedbackResponse(feedback=[mapping.feedback_to(f) for f in found[:size]], next_page_token=token)


def _traceparent() -> str:
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent", "")
