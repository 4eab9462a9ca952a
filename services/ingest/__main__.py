"""Composition root of the ingest service: `python -m services.ingest`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import grpc
from tidemill.ingest.v1 import dead_letter_service_pb2_grpc as dead_letter_stubs
from tidemill.ingest.v1 import ingest_service_pb2_grpc as grpc_stubs
from tidemill.ingest.v1 import source_service_pb2_grpc as source_stubs

from services.ingest.adapters.crawl.page_store import SqlPageStore
from services.ingest.adapters.dead_letter_log import KafkaDeadLetterLog
from services.ingest.adapters.ledger import TemporaryLedger
from services.ingest.adapters.mark_store import SqlMarkStore
from services.ingest.adapters.plugin_sources import AllSources
from services.ingest.adapters.pulled_store import SqlPulledStore
from services.ingest.adapters.record_sink import BusRecordSink
from services.ingest.adapters.source_files.port import ReadLimits
from services.ingest.adapters.source_files.roots import SourceRoots
from services.ingest.adapters.source_files.s3 import s3_endpoint
from services.ingest.adapters.source_files.secrets import SourceSecrets
from services.ingest.adapters.source_store import SqlSourceStore
from services.ingest.adapters.sources import FileSources
from services.ingest.adapters.stores import SqlBatchStore, SqlImportStore
from services.ingest.app.dead_letters import DeadLetters
from services.ingest.app.declared_sources import DeclaredSources
from services.ingest.app.imports import Imports
from services.ingest.app.intake import Intake
from services.ingest.app.policies import Policies
from services.ingest.app.runner import ImportRunner
from services.ingest.app.source_tenants import SourceTenants
from services.ingest.entrypoints.accept_pool import AcceptPool
from services.ingest.entrypoints.collection_worker import CollectionWorker
from services.ingest.entrypoints.dead_letter_servicer import DeadLetterServicer
from services.ingest.entrypoints.inbound import InboundHandler
from services.ingest.entrypoints.losses import LossHandler
from services.ingest.entrypoints.servicer import IngestServicer
from services.ingest.entrypoints.source_servicer import SourceServicer
from services.ingest.entrypoints.survey_pool import SurveyPool
from services.ingest.entrypoints.worker import ImportWorker
from services.ingest.settings import IngestSettings
from services.kit.bus.consumer import KafkaEventConsumer
from services.kit.bus.kafka import KafkaEventPublisher, ensure_topics
from services.kit.bus.metrics import ConsumerMetrics, LossMetrics
from services.kit.bus.retention import RetentionGuard
from services.kit.bus.topics import CLEANING_EVENTS, INBOUND
from services.kit.clock import SystemClock
from services.kit.config import load_settings, split_list
from services.kit.grpc.request_ids import RequestIdInterceptor
from services.kit.network_rules import NetworkRules
from services.kit.runtime.losses import loss_reporter
from services.kit.runtime.service import Service, run_service
from services.kit.storage.database import open_database
from services.kit.storage.disk import DiskGuard
from services.kit.storage.requests import SqlRequestLog
from services.kit.telemetry.metrics import RequestMetrics

MIGRATIONS = Path(__file__).parent / "adapters" / "migrations"


async def build(settings: IngestSettings, metrics: RequestMetrics) -> Service:
    """Builds the service."""
    await asyncio.to_thread(ensure_topics, settings.brokers)
    engine = await asyncio.to_thread(open_database, settings.database_url, MIGRATIONS, schema="ingest")
    publisher = await asyncio.to_thread(KafkaEventPublisher, settings.brokers, "ingest")
    clock, disk = SystemClock(), DiskGuard(settings.state, settings.disk_reserve_bytes)
    store = SqlImportStore(engine)
    sink = BusRecordSink(publisher, clock, disk, after=await asyncio.to_thread(store.latest_change))
    look_ups = ThreadPoolExecutor(16, thread_name_prefix="look-up")
    sources = _sources(settings, look_ups, SqlPageStore(engine))
    declared = SqlSourceStore(engine)
    policies = Policies(declared)
    await asyncio.to_thread(policies.refresh)
    tenants = SourceTenants(declared, policies)
    intake = Intake(sink, SqlBatchStore(engine), policies, tenants, clock, settings.request_retention_s)
    imports = Imports(store, sources, declared, clock)
    runner = ImportRunner(store, SqlPulledStore(engine), sources, sink, TemporaryLedger, clock)
    consumed = ConsumerMetrics(metrics.registry)
    consumer = KafkaEventConsumer(
        settings.brokers,
        "tidemill-ingest",
        [INBOUND],
        InboundHandler(intake),
        dead_letters=publisher,
        metrics=consumed,
        on_lost=loss_reporter(LossMetrics(metrics.registry), settings.state, clock, "tidemill-ingest"),
    )
    losses = KafkaEventConsumer(
        settings.brokers,
        "tidemill-ingest-losses",
        [CLEANING_EVENTS],
        LossHandler(store.note_loss),
        dead_letters=publisher,
        metrics=consumed,
    )
    retention = RetentionGuard(settings.brokers, [INBOUND])
    accepting = AcceptPool(16, settings.accepting_bytes)
    surveys = SurveyPool(settings.surveyed_at_once)
    worker = ImportWorker(store, runner, intake, settings.concurrent_imports)
    collecting = SurveyPool(settings.surveyed_at_once)
    collected = DeclaredSources(declared, imports, store, policies, clock)
    collector = CollectionWorker(collected, collecting, lambda: worker.origins)
    letters = DeadLetters(KafkaDeadLetterLog(settings.brokers, publisher), SqlMarkStore(engine), clock)

    def register(server: grpc.aio.Server) -> Sequence[str]:
        grpc_stubs.add_IngestServiceServicer_to_server(IngestServicer(intake, imports, accepting, surveys), server)
        dead_letter_stubs.add_DeadLetterServiceServicer_to_server(DeadLetterServicer(letters), server)
        source_stubs.add_SourceServiceServicer_to_server(SourceServicer(collected, collector), server)
        return [f"tidemill.ingest.v1.{name}Service" for name in ("Ingest", "DeadLetter", "Source")]

    return Service(
        register=register,
        consumers=[consumer, losses, retention],
        tasks=[worker.run, collector.run],
        stopping=[publisher.finish],
        requests=RequestIdInterceptor(SqlRequestLog(engine, clock), kept_elsewhere=["IngestRecords"]),
        closers=[
            surveys.close,
            collecting.close,
            worker.close,
            publisher.close,
            accepting.close,
            look_ups.shutdown,
            engine.dispose,
        ],
    )


def _sources(settings: IngestSettings, look_ups: Executor, pages: SqlPageStore) -> AllSources:
    added = Path(settings.source_roots_file) if settings.source_roots_file else None
    limits = ReadLimits(
        settings.source_connect_s, settings.source_silence_s, settings.source_file_bytes, settings.source_import_bytes
    )
    files = FileSources(
        settings.compared_source_bytes,
        # What the pipeline service writes of feedback lies in the artefact store, and in no other folder of it.
        SourceRoots(
            [*split_list(settings.source_roots), f"{settings.artifacts_url.rstrip('/')}/feedback"],
            added,
            settings.data_dir,
        ),
        NetworkRules(split_list(settings.source_hosts)),
        look_ups,
        pages,
        limits=limits,
        s3_endpoint=s3_endpoint(settings.source_s3_endpoint),
        secrets=SourceSecrets(Path(settings.source_secrets_file) if settings.source_secrets_file else None),
    )
    return AllSources(files)


def main() -> None:
    """Runs the service until it is stopped."""
    settings = load_settings(IngestSettings)

    async def start(metrics: RequestMetrics) -> Service:
        return await build(settings, metrics)

    run_service("ingest", settings, start)


if __name__ == "__main__":
    main()
