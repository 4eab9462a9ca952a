# ruff: noqa: N802 - method names follow the contract
"""IngestService over gRPC: map in, one call, map out. The use cases block, so they run in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from tidemill.ingest.v1 import ingest_service_pb2 as pb
from tidemill.ingest.v1 import ingest_service_pb2_grpc as grpc_stubs

from services.ingest.app.imports import Imports
from services.ingest.app.intake import Intake
from services.ingest.entrypoints import mapping
from services.ingest.entrypoints.accept_pool import AcceptPool
from services.ingest.entrypoints.survey_pool import SurveyPool
from services.kit.grpc.paging import read_page
from services.kit.grpc.watching import watch
from services.kit.ids import ID_PATTERN
from services.kit.telemetry.context import current_traceparent
from services.kit.threads import in_thread


class IngestServicer(grpc_stubs.IngestServiceServicer):
    """Implements `tidemill.ingest.v1.IngestService`."""

    def __init__(self, intake: Intake, imports: Imports, accepting: AcceptPool, surveys: SurveyPool) -> None:
        """Two kinds of calls wait for others, and so have their own threads.

        Args:
            intake: accepts records.
            imports: the use cases on imports.
            accepting: threads for accepting batches, which wait for the bus and nothing else.
            surveys: threads for checking sources, which wait for those and nothing else.
        """
        self._surveys = surveys
        self._intake = intake
        self._imports = imports
        self._accepting = accepting

    async def IngestRecords(self, request: pb.IngestRecordsRequest, context: Any) -> pb.IngestRecordsResponse:
        """Accepts a batch."""
        return pb.IngestRecordsResponse(record_ids=await self._accept(request, context))

    async def StreamRecords(
        self, request_iterator: AsyncIterator[pb.StreamRecordsRequest], context: Any
    ) -> AsyncIterator[pb.StreamRecordsResponse]:
        """Accepts batches one after another.

        The next batch is read once the previous one is acknowledged: if a client sends faster than the bus accepts,
        HTTP/2's flow control holds it back. A refused batch ends the stream with its error; earlier batches are
        acknowledged.
        """
        async for request in request_iterator:
            record_ids = await self._accept(request, context)
            yield pb.StreamRecordsResponse(request_id=request.request_id, record_ids=record_ids)

    async def _accept(self, request: pb.IngestRecordsRequest | pb.StreamRecordsRequest, context: Any) -> list[str]:
        records = [mapping.record_from(record, f"records[{i}]") for i, record in enumerate(request.records)]
        # Not in the threads of other calls: while the bus is unavailable, each of these waits for its full timeout.
        accept = partial(self._intake.accept, records, request.request_id, mapping.tenant_of(context))
        return list(await self._accepting.run(request.ByteSize(), accept))

    async def CreateImport(self, request: pb.CreateImportRequest, context: Any) -> pb.CreateImportResponse:
        """Starts to pull a source, or returns an earlier import of the same content."""
        spec, trace = mapping.spec_from(request.spec), current_traceparent()
        item, reused = await self._surveys.run(
            lambda interrupt: self._imports.create(spec, request.request_id, trace, interrupt, resend=request.resend)
        )
        return pb.CreateImportResponse(source_import=mapping.import_to(item, reused=reused))

    async def GetImport(self, request: pb.GetImportRequest, context: Any) -> pb.GetImportResponse:
        """Returns an import."""
        item = await asyncio.to_thread(self._imports.get, request.name)
        return pb.GetImportResponse(source_import=mapping.import_to(item))

    async def ListImports(self, request: pb.ListImportsRequest, context: Any) -> pb.ListImportsResponse:
        """Lists imports; the page token is the last name."""
        read = in_thread(self._imports.list)
        page = await read_page(request, f"imports/{ID_PATTERN}", read, lambda item: item.name)
        imports = [mapping.import_to(item) for item in page.items]
        return pb.ListImportsResponse(imports=imports, next_page_token=page.next_token)

    async def CancelImport(self, request: pb.CancelImportRequest, context: Any) -> pb.CancelImportResponse:
        """Cancels an import."""
        item = await asyncio.to_thread(self._imports.cancel, request.name)
        return pb.CancelImportResponse(source_import=mapping.import_to(item))

    async def WatchImport(self, request: pb.WatchImportRequest, context: Any) -> AsyncIterator[pb.WatchImportResponse]:
        """Sends the import now and at each change; ends with its final state."""
        read = in_thread(partial(self._imports.get, request.name))
        async for item in watch(read, lambda item: item.state.final):
            yield pb.WatchImportResponse(source_import=mapping.import_to(item))
