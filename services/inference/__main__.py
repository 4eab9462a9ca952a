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
from services.inference.app.restarts import RestartQueue
from services.inference.app.route_book import Reader, RouteBook
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
from services.serving.adapters.answer_journal import AnswerJournal
from services.serving.adapters.served_log import BackgroundServedLog
from services.serving.adapters.triton_client import TritonClient, open_triton
from services.serving.adapters.triton_guard import TritonGuard
from services.serving.adapters.triton_liveness import Liveness
from services.serving.adapters.triton_v2 import TritonV2
from services.serving.app.routing import RoutingTable
from services.serving.app.serving import Serving
from services.serving.entrypoints.answers import Answers
from services.serving.entrypoints.kserve import SERVICE, kserve_handlers

MIGRATIONS = Path(__file__).parent / "adapters" / "migrations"


def _follow(book: RouteBook, table: RoutingTable) -> None:
    """Keeps a table of this process equal to the routes."""

    def take() -> None:
        routes = book.read()
        table.replace(routes.by_model.values())
        book.has(reader, routes.revision)

    reader = Reader(take)
    book.add(reader)
    take()


class _LocalDeaths:
    """Implements `services.serving.app.ports.Deaths` for a data plane in the control plane's own process."""

    def __init__(self, table: RoutingTable, restarts: RestartQueue) -> None:
        self._restarts = restarts
        self.generation = table.generation

    def report(self, model: str, generation: int) -> None:
        """See the port."""
        self._restarts.add(model, generation)


async def build(settings: InferenceSettings, metrics: RequestMetrics) -> Service:
    """Builds the service."""
    await asyncio.to_thread(ensure_topics, settings.brokers)
    engine = await asyncio.to_thread(open_database, settings.database_url, MIGRATIONS, schema="inference")
    publisher = await asyncio.to_thread(KafkaEventPublisher, settings.brokers, "inference")
    clock, book, table, restarts = SystemClock(), RouteBook(), RoutingTable(), RestartQueue()
    table.replace(())
    _follow(book, table)
    control = TritonControl(settings.triton_grpc, load_timeout_s=settings.load_timeout_s)
    channel = open_triton(settings.triton_grpc)
    deaths = _LocalDeaths(table, restarts)
    liveness, guard = Liveness(channel, deaths), TritonGuard(channel, deaths)
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
    publishing = Publishing(parts, BusAnnouncer(publisher), restarts, keep_versions=settings.keep_versions)
    await asyncio.to_thread(publishing.fill_book)
    journal = await asyncio.to_thread(AnswerJournal, settings.state / "answers")
    served = BackgroundServedLog(publisher, metrics.registry, journal)
    serving = Serving(table, TritonClient(channel, liveness, guard), served, clock)

    def register(server: grpc.aio.Server) -> Sequence[str]:
        grpc_stubs.add_InferenceServiceServicer_to_server(InferenceServicer(Answers(serving), publishing, book), server)
        v2 = kserve_handlers(TritonV2(channel, liveness, guard))
        names = {path.rpartition("/")[2]: handler for path, handler in v2.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, names),))
        return ["tidemill.inference.v1.InferenceService", SERVICE]

    return Service(
        register=register,
        tasks=[lambda: run_reconciler(publishing, restarts, settings.reconcile_pause_s)],
        stopping=[publisher.finish],
        requests=RequestIdInterceptor(SqlRequestLog(engine, clock)),
        closers=[channel.close, control.close, served.close, publisher.close, engine.dispose],
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
