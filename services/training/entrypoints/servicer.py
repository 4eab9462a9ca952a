# ruff: noqa: N802 - the methods bear the names of the contract
"""TrainingService over gRPC: map in, one call, map out. The use cases block, so they run in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from opentelemetry import propagate
from tidemill.training.v1 import training_service_pb2 as pb
from tidemill.training.v1 import training_service_pb2_grpc as grpc_stubs

from services.kit.grpc.paging import checked_token
from services.kit.ids import ID_PATTERN
from services.training.app.runs import Runs
from services.training.domain.run import Run
from services.training.entrypoints import mapping

_PAGE = 50
_WATCH_PAUSE_S = 0.25


class TrainingServicer(grpc_stubs.TrainingServiceServicer):
    """Implements `tidemill.training.v1.TrainingService`."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    async def CreateRun(self, request: pb.CreateRunRequest, context: Any) -> pb.CreateRunResponse:
        """Queues a run."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        spec = mapping.spec_from(request.spec)
        run = await asyncio.to_thread(self._runs.create, spec, request.request_id, carrier.get("traceparent", ""))
        return pb.CreateRunResponse(run=mapping.run_to(run))

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        """Reads a run."""
        return pb.GetRunResponse(run=mapping.run_to(await asyncio.to_thread(self._runs.get, request.name)))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        """Lists runs; the page token is the last name."""
        size = request.page_size or _PAGE
        found = await asyncio.to_thread(
            self._runs.page, checked_token(request.page_token, f"runs/{ID_PATTERN}"), size + 1
        )
        token = found[size - 1].name if len(found) > size else ""
        return pb.ListRunsResponse(runs=[mapping.run_to(run) for run in found[:size]], next_page_token=token)

    async def CancelRun(self, request: pb.CancelRunRequest, context: Any) -> pb.CancelRunResponse:
        """Stops a run."""
        return pb.CancelRunResponse(run=mapping.run_to(await asyncio.to_thread(self._runs.cancel, request.name)))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Any) -> AsyncIterator[pb.WatchRunResponse]:
        """Sends the run now, at each change, and ends with its final state."""
        sent: Run | None = None
        while sent is None or not sent.state.final:
            run = await asyncio.to_thread(self._runs.get, request.name)
            if run != sent:
                yield pb.WatchRunResponse(run=mapping.run_to(run))
                sent = run
            else:
                await asyncio.sleep(_WATCH_PAUSE_S)

    async def PromoteRun(self, request: pb.PromoteRunRequest, context: Any) -> pb.PromoteRunResponse:
        """Moves the alias champion."""
        return pb.PromoteRunResponse(run=mapping.run_to(await asyncio.to_thread(self._runs.promote, request.name)))
