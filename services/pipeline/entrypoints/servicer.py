# ruff: noqa: N802 - method names follow the contract
"""PipelineService over gRPC: map in, one call, map out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1 import pipeline_service_pb2_grpc as grpc_stubs

from services.kit.grpc.paging import read_page
from services.kit.grpc.watching import watch
from services.kit.ids import ID_PATTERN
from services.kit.telemetry.context import current_traceparent
from services.kit.threads import in_thread
from services.pipeline.app.capture import Captures
from services.pipeline.app.cycles import Cycles
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.entrypoints import mapping


class PipelineServicer(grpc_stubs.PipelineServiceServicer):
    """Implements `tidemill.pipeline.v1.PipelineService`."""

    def __init__(self, cycles: Cycles, feedback: FeedbackService, captures: Captures) -> None:
        self._cycles, self._feedback, self._captures = cycles, feedback, captures

    async def CreateCycle(self, request: pb.CreateCycleRequest, context: Any) -> pb.CreateCycleResponse:
        """Starts a cycle."""
        cycle = await self._cycles.create(mapping.spec_from(request.spec), request.request_id, current_traceparent())
        return pb.CreateCycleResponse(cycle=mapping.cycle_to(cycle))

    async def GetCycle(self, request: pb.GetCycleRequest, context: Any) -> pb.GetCycleResponse:
        """Reads a cycle."""
        return pb.GetCycleResponse(cycle=mapping.cycle_to(await self._cycles.get(request.name)))

    async def ListCycles(self, request: pb.ListCyclesRequest, context: Any) -> pb.ListCyclesResponse:
        """Lists cycles; the page token is the last id."""
        read = partial(self._cycles.page, request.pipeline.removeprefix("pipelines/"))
        page = await read_page(request, ID_PATTERN, read, lambda cycle: cycle.cycle_id)
        cycles = [mapping.cycle_to(cycle) for cycle in page.items]
        return pb.ListCyclesResponse(cycles=cycles, next_page_token=page.next_token)

    async def CancelCycle(self, request: pb.CancelCycleRequest, context: Any) -> pb.CancelCycleResponse:
        """Stops a cycle."""
        return pb.CancelCycleResponse(cycle=mapping.cycle_to(await self._cycles.cancel(request.name)))

    async def WatchCycle(self, request: pb.WatchCycleRequest, context: Any) -> AsyncIterator[pb.WatchCycleResponse]:
        """Sends the cycle now, at each change, and ends with its final state."""
        async for cycle in watch(partial(self._cycles.get, request.name), lambda cycle: cycle.state.final):
            yield pb.WatchCycleResponse(cycle=mapping.cycle_to(cycle))

    async def RecordFeedback(self, request: pb.RecordFeedbackRequest, context: Any) -> pb.RecordFeedbackResponse:
        """Records a judgement."""
        draft = mapping.judgement_from(request, mapping.caller_of(context), current_traceparent())
        (kept,) = await asyncio.to_thread(self._feedback.record, [draft])
        return pb.RecordFeedbackResponse(feedback=mapping.feedback_to(kept))

    async def BatchRecordFeedback(
        self, request: pb.BatchRecordFeedbackRequest, context: Any
    ) -> pb.BatchRecordFeedbackResponse:
        """Records several judgements."""
        caller, traceparent = mapping.caller_of(context), current_traceparent()
        drafts = [mapping.judgement_from(item, caller, traceparent) for item in mapping.identified(request)]
        kept = await asyncio.to_thread(self._feedback.record, drafts, "judgements")
        return pb.BatchRecordFeedbackResponse(feedback=[mapping.feedback_to(item) for item in kept])

    async def GetCapturedAnswer(
        self, request: pb.GetCapturedAnswerRequest, context: Any
    ) -> pb.GetCapturedAnswerResponse:
        """Reads a captured answer."""
        answer = await asyncio.to_thread(self._captures.get, request.name)
        return pb.GetCapturedAnswerResponse(answer=mapping.captured_to(answer))

    async def ListCapturedAnswers(
        self, request: pb.ListCapturedAnswersRequest, context: Any
    ) -> pb.ListCapturedAnswersResponse:
        """Lists captured answers; the page token is the last id."""
        read = in_thread(partial(self._captures.page, request.model))
        page = await read_page(request, ID_PATTERN, read, lambda item: item.name.removeprefix("answers/"))
        answers = [mapping.captured_to(item) for item in page.items]
        return pb.ListCapturedAnswersResponse(answers=answers, next_page_token=page.next_token)

    async def WatchCapture(
        self, request: pb.WatchCaptureRequest, context: Any
    ) -> AsyncIterator[pb.WatchCaptureResponse]:
        """Sends the rules of capture now and at each change, without an end."""
        key = await asyncio.to_thread(self._captures.user_key)
        async for policies in watch(in_thread(self._captures.policies), lambda _: False):
            yield pb.WatchCaptureResponse(policies=[mapping.policy_to(policy) for policy in policies], user_key=key)

    async def ListFeedback(self, request: pb.ListFeedbackRequest, context: Any) -> pb.ListFeedbackResponse:
        """Lists feedback; the page token is the last id."""
        read = in_thread(partial(self._feedback.page, request.model))
        page = await read_page(request, ID_PATTERN, read, lambda item: item.feedback_id)
        feedback = [mapping.feedback_to(item) for item in page.items]
        return pb.ListFeedbackResponse(feedback=feedback, next_page_token=page.next_token)
