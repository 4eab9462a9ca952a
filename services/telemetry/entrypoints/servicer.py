# ruff: noqa: N802 - method names follow the contract
"""TelemetryService over gRPC: map in, one call, map out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message
from tidemill.telemetry.v1 import telemetry_service_pb2 as pb
from tidemill.telemetry.v1.telemetry_service_pb2_grpc import TelemetryServiceServicer

from services.kit.grpc.paging import DEFAULT_SIZE
from services.telemetry.app.search import SearchService
from services.telemetry.entrypoints import mapping

# Bytes of spans, and of log lines, in one response: together well below gRPC's limit.
_MAX_BYTES = 24 * 1024 * 1024

M = TypeVar("M", bound=Message)


class TelemetryServicer(TelemetryServiceServicer):
    """Implements `tidemill.telemetry.v1.TelemetryService`."""

    def __init__(self, searches: SearchService) -> None:
        self._searches = searches

    async def SearchLogs(self, request: pb.SearchLogsRequest, context: Any) -> pb.SearchLogsResponse:
        """Searches log lines."""
        page = await self._searches.logs(
            request.query,
            mapping.time_from(request.start_time) if request.HasField("start_time") else None,
            mapping.time_from(request.end_time) if request.HasField("end_time") else None,
            request.page_size or DEFAULT_SIZE,
            request.page_token,
        )
        records = [mapping.log_to(source) for source in page.sources]
        return pb.SearchLogsResponse(records=records, next_page_token=page.next_token, total=page.total)

    async def GetTrace(self, request: pb.GetTraceRequest, context: Any) -> pb.GetTraceResponse:
        """Reads a trace."""
        trace = await self._searches.trace(request.trace_id)
        spans, all_spans = _fitting(mapping.span_to, trace.spans)
        logs, all_logs = _fitting(mapping.log_to, trace.logs)
        truncated = trace.truncated or not all_spans or not all_logs
        return pb.GetTraceResponse(spans=spans, logs=logs, truncated=truncated)

    async def SearchTraces(self, request: pb.SearchTracesRequest, context: Any) -> pb.SearchTracesResponse:
        """Searches traces."""
        page = await self._searches.traces(request.query, request.page_size or DEFAULT_SIZE, request.page_token)
        traces = [pb.TraceSummary(trace_id=source["trace.id"], root=mapping.span_to(source)) for source in page.sources]
        return pb.SearchTracesResponse(traces=traces, next_page_token=page.next_token)


def _fitting(convert: Callable[[Mapping[str, Any]], M], sources: Iterable[Mapping[str, Any]]) -> tuple[list[M], bool]:
    """As many items from the beginning as fit into a response, and whether these are all."""
    messages: list[M] = []
    size = 0
    for source in sources:
        message = convert(source)
        size += message.ByteSize()
        if size > _MAX_BYTES:
            return messages, False
        messages.append(message)
    return messages, True
