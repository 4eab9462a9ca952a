"""Composition root of the inference service: `python -m services.inference`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc
from tidemill.inference.v1 import inference_service_pb2_grpc as grpc_stubs

from services.inference.adapters.announcer import BusAnnouncer
from services.inference.adapters.builds import ArtifactBuilds
from services.inference.adapters.model_store import SqlModelStore
from services.inference.adapters.triton_control import TritonControl
from services.inference.adapters.triton_repository import TritonRepository
from services.inference.app.loading import ServingParts
from services.inference.app.publishing import Publishing
from services.inference.app.reconciling import Reconciler
from services.inference.app.restarts import RestartQueue
from services.inference.app.route_book import RouteBook
from services.inference.app.versions import Versions
from services.inference.entrypoints.servicer import InferenceServicer
from services.inference.entrypoints.worker import run_reconciler
from services.inference.settings import InferenceSettings
from services.kit.bus.kafka import KafkaEventPublisher, ensure_topics
from services.kit.clock import SystemClock
from services.kit.config import load_settings
from services.kit.grpc.request_ids import RequestIdInterceptor
from services.kit.runtime.service import Service, run_service
from services.kit.storage.artifacts import ArtifactStore
from services.kit.storage.database import open_database
from services.kit.storage.requests import SqlRequestLog
from services.kit.storage.signing import TrustedKeys
from services.kit.telemetry.metrics import RequestMetrics

MIGRATIONS = Path(__file__).parent / "adapters" / "migrations"


async def build(settings: InferenceSettings, metrics: RequestMetrics) -> Service:
    """Builds the service."""
    await asyncio.to_thread(ensure_topics, settings.brokers)
    engine = await asyncio.to_thread(open_database, settings.database_url, MIGRATIONS, schema="inference")
    publisher = await asyncio.to_thread(KafkaEventPublisher, settings.brokers, "inference")
    clock, book, restarts = SystemClock(), RouteBook(), RestartQueue()
    control = TritonControl(settings.triton_grpc, load_timeout_s=settings.load_timeout_s, tls=settings.peer_files)
    trusted = TrustedKeys(settings.trusted_model_keys.absolute())
    repository = TritonRepository(
        settings.triton_repository.absolute(),
        settings.staging.absolute(),
        trusted,
        settings.otlp_endpoint_of_models or settings.otlp_endpoint,
    )
    builds = ArtifactBuilds(ArtifactStore(settings.artifacts_url), trusted, settings.cache.absolute())
    await asyncio.to_thread(repository.clear_staging)
    await asyncio.to_thread(builds.clear_cache)
    parts = ServingParts(SqlModelStore(engine), builds, repository, control, book, clock)
    versions = Versions(parts, restarts, drain_s=settings.drain_s)
    publishing = Publishing(versions, keep_versions=settings.keep_versions)
    reconciler = Reconciler(versions, BusAnnouncer(publisher))
    await asyncio.to_thread(reconciler.fill_book)

    def register(server: grpc.aio.Server) -> Sequence[str]:
        grpc_stubs.add_InferenceServiceServicer_to_server(InferenceServicer(publishing, reconciler, book), server)
        return ["tidemill.inference.v1.InferenceService"]

    return Service(
        register=register,
        tasks=[lambda: run_reconciler(reconciler, restarts, settings.reconcile_pause_s)],
        stopping=[publisher.finish],
        requests=RequestIdInterceptor(SqlRequestLog(engine, clock)),
        closers=[control.close, publisher.close, engine.dispose],
        # A publication returns when the model answers.
        default_deadline_s=settings.load_timeout_s + 120.0,
    )


def main() -> None:
    """Runs the service until it is stopped."""
    settings = load_settings(InferenceSettings)

    async def start(metrics: RequestMetrics) -> Service:
        return await build(settings, metrics)

    run_service("inference", settings, start)


if __name__ == "__main__":
    main()
