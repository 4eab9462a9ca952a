# ruff: noqa: N802 - method names follow the contract
"""TrainingService over gRPC: map in, one call, map out. The use cases block, so they run in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from tidemill.training.v1 import training_service_pb2 as pb
from tidemill.training.v1 import training_service_pb2_grpc as grpc_stubs

from services.kit.grpc.paging import read_page
from services.kit.grpc.watching import watch
from services.kit.ids import ID_PATTERN
from services.kit.telemetry.context import current_traceparent
from services.kit.threads import in_thread
from services.training.app.advising import Advising
from services.training.app.runs import Runs
from services.training.entrypoints import mapping


class TrainingServicer(grpc_stubs.TrainingServiceServicer):
    """Implements `tidemill.training.v1.TrainingService`."""

    def __init__(self, runs: Runs, advising: Advising) -> None:
        self._runs, self._advising = runs, advising

    async def CreateRun(self, request: pb.CreateRunRequest, context: Any) -> pb.CreateRunResponse:
        """Queues a run."""
        spec = mapping.spec_from(request.spec)
        run = await asyncio.to_thread(self._runs.create, spec, request.request_id, current_traceparent())
        return pb.CreateRunResponse(run=mapping.run_to(run))

    async def CreateTrial(self, request: pb.CreateTrialRequest, context: Any) -> pb.CreateTrialResponse:
        """Queues a trial."""
        spec = mapping.spec_from(request.spec, request.trial)
        run = await asyncio.to_thread(self._runs.create, spec, request.request_id, current_traceparent())
        return pb.CreateTrialResponse(run=mapping.run_to(run))

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        """Reads a run."""
        return pb.GetRunResponse(run=mapping.run_to(await asyncio.to_thread(self._runs.get, request.name)))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        """Lists runs; the page token is the last name."""
        read = in_thread(self._runs.page)
        page = await read_page(request, f"runs/{ID_PATTERN}", read, lambda run: run.name)
        return pb.ListRunsResponse(runs=[mapping.run_to(run) for run in page.items], next_page_token=page.next_token)

    async def CancelRun(self, request: pb.CancelRunRequest, context: Any) -> pb.CancelRunResponse:
        """Stops a run."""
        return pb.CancelRunResponse(run=mapping.run_to(await asyncio.to_thread(self._runs.cancel, request.name)))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Any) -> AsyncIterator[pb.WatchRunResponse]:
        """Sends the run now, at each change, and ends with its final state."""
        read = in_thread(partial(self._runs.get, request.name))
        async for run in watch(read, lambda run: run.state.final):
            yield pb.WatchRunResponse(run=mapping.run_to(run))

    async def PromoteRun(self, request: pb.PromoteRunRequest, context: Any) -> pb.PromoteRunResponse:
        """Moves the alias champion."""
        return pb.PromoteRunResponse(run=mapping.run_to(await asyncio.to_thread(self._runs.promote, request.name)))

    async def PlanTraining(self, request: pb.PlanTrainingRequest, context: Any) -> pb.PlanTrainingResponse:
        """Plans the memory of a run."""
        spec = mapping.spec_from(request.spec)
        plan = await asyncio.to_thread(self._runs.plan, spec, request.devices, request.device_bytes)
        return mapping.plan_to(plan)

    async def AdviseTraining(self, request: pb.AdviseTrainingRequest, context: Any) -> pb.AdviseTrainingResponse:
        """Picks recipe and build."""
        return mapping.advice_to(await asyncio.to_thread(self._advising.advise, mapping.wishes_from(request)))
