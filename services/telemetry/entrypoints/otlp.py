# ruff: noqa: N802 - method names follow the contract
"""OTLP's receivers over gRPC (https://opentelemetry.io/docs/specs/otlp/#otlpgrpc)."""

from __future__ import annotations

import time
from typing import Any

from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceServicer
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceServicer

from services.telemetry.app.intake import Intake
from services.telemetry.domain.days import Retention, Signal
from services.telemetry.domain.document import Receipt
from services.telemetry.entrypoints.otlp_mapping import Mapped, logs_from, spans_from

# The part of a sender's deadline that is left for the response.
_MARGIN_S = 0.5


class Receiver:
    """Common part of both receivers: passes mapped documents to the intake."""

    def __init__(self, intake: Intake, retention: Retention, patience_s: float) -> None:
        self.retention = retention
        self._intake = intake
        self._patience_s = patience_s

    async def take(self, signal: Signal, mapped: Mapped, context: Any) -> Receipt:
        """Waits until the documents are written; returns how many were refused."""
        remaining = context.time_remaining()
        patience = self._patience_s if remaining is None else min(self._patience_s, max(remaining - _MARGIN_S, 0.0))
        receipt = await self._intake.take(signal, mapped.documents, patience)
        # Counted only now, because a request that failed is sent again and must not count twice.
        self._intake.note_unfit(signal, mapped.refused, mapped.reason)
        return Receipt(mapped.refused + receipt.refused, mapped.reason or receipt.reason)


class LogsReceiver(LogsServiceServicer):
    """Implements `opentelemetry.proto.collector.logs.v1.LogsService`."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def Export(
        self, request: logs_pb.ExportLogsServiceRequest, context: Any
    ) -> logs_pb.ExportLogsServiceResponse:
        """Receives log records."""
        mapped = logs_from(request, self._receiver.retention, time.time_ns())
        receipt = await self._receiver.take(Signal.LOGS, mapped, context)
        response = logs_pb.ExportLogsServiceResponse()
        if receipt.refused:
            response.partial_success.rejected_log_records = receipt.refused
            response.partial_success.error_message = receipt.reason
        return response


class TracesReceiver(TraceServiceServicer):
    """Implements `opentelemetry.proto.collector.trace.v1.TraceService`."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def Export(
        self, request: trace_pb.ExportTraceServiceRequest, context: Any
    ) -> trace_pb.ExportTraceServiceResponse:
        """Receives spans."""
        mapped = spans_from(request, self._receiver.retention, time.time_ns())
        receipt = await self._receiver.take(Signal.TRACES, mapped, context)
        response = trace_pb.ExportTraceServiceResponse()
        if receipt.refused:
            response.partial_success.rejected_spans = receipt.refused
            response.partial_success.error_message = receipt.reason
        return response
