"""Composition root of the telemetry service: `python -m services.telemetry`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import add_LogsServiceServicer_to_server
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import add_TraceServiceServicer_to_server
from tidemill.telemetry.v1.telemetry_service_pb2_grpc import add_TelemetryServiceServicer_to_server

from services.kit.clock import SystemClock
from services.kit.config import load_settings
from services.kit.errors import UnavailableError
from services.kit.runtime.service import Service, run_service
from services.kit.telemetry.metrics import RequestMetrics
from services.telemetry.adapters.client import open_client
from services.telemetry.adapters.metrics import PrometheusObserver
from services.telemetry.adapters.search import ElasticsearchSearch
from services.telemetry.adapters.store import ElasticsearchStore
from services.telemetry.app.intake import Intake, Limits
from services.telemetry.app.retention import Sweeper
from services.telemetry.app.search import SearchService
from services.telemetry.domain.days import Retention
from services.telemetry.entrypoints.otlp import LogsReceiver, Receiver, TracesReceiver
from services.telemetry.entrypoints.servicer import TelemetryServicer
from services.telemetry.entrypoints.worker import run_sweeper
from services.telemetry.settings import TelemetrySettings

logger = logging.getLogger(__name__)

SERVED = (
    "tidemill.telemetry.v1.TelemetryService",
    "opentelemetry.proto.collector.logs.v1.LogsService",
    "opentelemetry.proto.collector.trace.v1.TraceService",
)


async def build(settings: TelemetrySettings, metrics: RequestMetrics) -> Service:
    """Builds the service."""
    client = open_client(settings.elasticsearch_url, settings.elasticsearch_user, settings.elasticsearch_password_file)
    store = ElasticsearchStore(client)
    try:
        await store.prepare()
    except UnavailableError as error:
        # Starting makes senders wait instead of being refused; the first bulk will create the missing templates.
        logger.warning("starts without Elasticsearch: %s", error.message)
    clock, retention = SystemClock(), Retention(settings.telemetry_retention_days)
    limits = Limits(
        queue_bytes=settings.telemetry_queue_bytes,
        bulk_documents=settings.telemetry_bulk_documents,
        bulk_bytes=settings.telemetry_bulk_bytes,
        bulk_wait_s=settings.telemetry_bulk_wait_s,
    )
    intake = Intake(store, limits, PrometheusObserver(metrics.registry), clock)
    receiver = Receiver(intake, retention, settings.telemetry_patience_s)
    searches = SearchService(ElasticsearchSearch(client))

    def register(server: grpc.aio.Server) -> Sequence[str]:
        add_LogsServiceServicer_to_server(LogsReceiver(receiver), server)  # type: ignore[no-untyped-call]
        add_TraceServiceServicer_to_server(TracesReceiver(receiver), server)  # type: ignore[no-untyped-call]
        add_TelemetryServiceServicer_to_server(TelemetryServicer(searches), server)
        return SERVED

    return Service(
        register=register,
        tasks=[intake.run, partial(run_sweeper, Sweeper(store, retention, clock))],
        closers=[client.close],
        traced=False,
    )


def main() -> None:
    """Runs the service until it is stopped."""
    settings = load_settings(TelemetrySettings)

    async def start(metrics: RequestMetrics) -> Service:
        return await build(settings, metrics)

    # It exports no telemetry itself, because exporting a log line would cause further log lines.
    run_service("telemetry", settings, start, export_telemetry=False)


if __name__ == "__main__":
    main()
