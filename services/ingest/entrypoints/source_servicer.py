# ruff: noqa: N802 - method names follow the contract
"""SourceService over gRPC: map in, one call, map out. The use cases block, so they run in threads."""

from __future__ import annotations

import asyncio
from typing import Any

from tidemill.ingest.v1 import source_service_pb2 as pb
from tidemill.ingest.v1 import source_service_pb2_grpc as grpc_stubs

from services.ingest.app.declared_sources import DeclaredSources
from services.ingest.entrypoints import mapping
from services.ingest.entrypoints.collection_worker import CollectionWorker
from services.kit.grpc.paging import read_page
from services.kit.telemetry.context import current_traceparent
from services.kit.threads import in_thread

_NAME = "[a-z0-9][a-z0-9._-]{0,63}"


class SourceServicer(grpc_stubs.SourceServiceServicer):
    """Implements `tidemill.ingest.v1.SourceService`."""

    def __init__(self, sources: DeclaredSources, worker: CollectionWorker) -> None:
        self._sources, self._worker = sources, worker

    async def PutSource(self, request: pb.PutSourceRequest, context: Any) -> pb.PutSourceResponse:
        """Declares or changes a source."""
        spec, timetable = mapping.spec_from(request.spec), mapping.timetable_from(request.spec)
        view = await asyncio.to_thread(self._sources.put, spec, timetable)
        return pb.PutSourceResponse(source=mapping.source_to(view))

    async def DeclareSources(self, request: pb.DeclareSourcesRequest, context: Any) -> pb.DeclareSourcesResponse:
        """Declares the sources of a pipeline."""
        wanted = [(mapping.spec_from(spec), mapping.timetable_from(spec)) for spec in request.specs]
        views = await asyncio.to_thread(self._sources.declare, request.pipeline.removeprefix("pipelines/"), wanted)
        return pb.DeclareSourcesResponse(sources=map(mapping.source_to, views))

    async def GetSource(self, request: pb.GetSourceRequest, context: Any) -> pb.GetSourceResponse:
        """Returns a source."""
        view = await asyncio.to_thread(self._sources.get, request.name)
        return pb.GetSourceResponse(source=mapping.source_to(view))

    async def ListSources(self, request: pb.ListSourcesRequest, context: Any) -> pb.ListSourcesResponse:
        """Lists sources; the page token is the last one's name."""
        read = in_thread(self._sources.page)
        page = await read_page(request, _NAME, read, lambda view: view.source.spec.source)
        return pb.ListSourcesResponse(sources=map(mapping.source_to, page.items), next_page_token=page.next_token)

    async def PauseSource(self, request: pb.PauseSourceRequest, context: Any) -> pb.PauseSourceResponse:
        """Pauses a source."""
        view = await asyncio.to_thread(self._sources.pause, request.name, True, request.reason)
        return pb.PauseSourceResponse(source=mapping.source_to(view))

    async def ResumeSource(self, request: pb.ResumeSourceRequest, context: Any) -> pb.ResumeSourceResponse:
        """Ends a pause."""
        view = await asyncio.to_thread(self._sources.pause, request.name, False)
        return pb.ResumeSourceResponse(source=mapping.source_to(view))

    async def DeleteSource(self, request: pb.DeleteSourceRequest, context: Any) -> pb.DeleteSourceResponse:
        """Deletes a source."""
        view = await asyncio.to_thread(self._sources.delete, request.name)
        return pb.DeleteSourceResponse(source=mapping.source_to(view))

    async def CollectSource(self, request: pb.CollectSourceRequest, context: Any) -> pb.CollectSourceResponse:
        """Collects a source now."""
        order = await asyncio.to_thread(
            self._sources.order, request.name, request.request_id, mapping.actor_of(context)
        )
        item, reused = await self._worker.carry_out(order, current_traceparent())
        return pb.CollectSourceResponse(source_import=mapping.import_to(item, reused=reused))
