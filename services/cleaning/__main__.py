"""Composition root of the cleaning service: `python -m services.cleaning`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from sqlalchemy import Engine
from tidemill.cleaning.v1 import cleaning_service_pb2_grpc as grpc_stubs

from services.cleaning.adapters.announcer import BusAnnouncer
from services.cleaning.adapters.answer_store import SqlAnswerStore
from services.cleaning.adapters.dataset_store import SqlDatasetStore
from services.cleaning.adapters.loss_store import SqlLossStore
from services.cleaning.adapters.models import AllModels
from services.cleaning.adapters.pseudonym_key import read_pseudonym_key
from services.cleaning.adapters.pushed_records import BusPushedRecords
from services.cleaning.adapters.record_store import SqlRecordStore, keys_in_use
from services.cleaning.adapters.served_models import ServedModels
from services.cleaning.adapters.snapshots import FolderSnapshots
from services.cleaning.adapters.synonym_tables import FolderTables
from services.cleaning.adapters.translator import Translators
from services.cleaning.adapters.vault import open_vault
from services.cleaning.app.builder import Builder
from services.cleaning.app.cards import Cards
from services.cleaning.app.datasets import Datasets
from services.cleaning.app.erasures import Erasures
from services.cleaning.app.explanations import Explanations
from services.cleaning.app.recipe_cache import RecipeCache
from services.cleaning.app.records import Records
from services.cleaning.app.rewriting import Rewriting
from services.cleaning.domain.originals import OriginalsPolicy
from services.cleaning.engine.registry import default_registry
from services.cleaning.entrypoints.consumer import RawRecordHandler
from services.cleaning.entrypoints.pool import WorkPool
from services.cleaning.entrypoints.servicer import CleaningServicer
from services.cleaning.entrypoints.worker import run_builder, run_rewriting
from services.cleaning.settings import CleaningSettings
from services.kit.bus.backlog import Backlog
from services.kit.bus.consumer import KafkaEventConsumer
from services.kit.bus.kafka import KafkaEventPublisher, ensure_topics
from services.kit.bus.metrics import ConsumerMetrics, LossMetrics
from services.kit.bus.port import LostMessages
from services.kit.bus.retention import RetentionGuard
from services.kit.bus.topics import RECORDS_RAW
from services.kit.clock import SystemClock
from services.kit.config import load_settings, split_list
from services.kit.grpc.request_ids import RequestIdInterceptor
from services.kit.network_rules import NetworkRules
from services.kit.runtime.losses import loss_reporter
from services.kit.runtime.service import Service, run_service
from services.kit.storage.artifacts import ArtifactStore
from services.kit.storage.database import open_database
from services.kit.storage.requests import SqlRequestLog
from services.kit.telemetry.metrics import RequestMetrics
from services.kit.telemetry.process_metrics import ProcessMetrics

MIGRATIONS = Path(__file__).parent / "adapters" / "migrations"


@dataclass(frozen=True, slots=True)
class Cleaner:
    """What cleans arriving records; each process of the service has one."""

    engine: Engine
    record_store: SqlRecordStore
    datasets: SqlDatasetStore
    publisher: KafkaEventPublisher
    announcer: BusAnnouncer
    losses: SqlLossStore
    models: ServedModels
    recipes: RecipeCache
    records: Records
    consumer: KafkaEventConsumer

    @classmethod
    async def open(cls, settings: CleaningSettings, metrics: RequestMetrics) -> Cleaner:
        """Opens the database and the bus; its consumer is not started yet."""
        await asyncio.to_thread(ensure_topics, settings.brokers)
        engine = await asyncio.to_thread(open_database, settings.database_url, MIGRATIONS, schema="cleaning")
        publisher = await asyncio.to_thread(KafkaEventPublisher, settings.brokers, "cleaning")
        clock = SystemClock()
        announcer, losses = BusAnnouncer(publisher, clock), SqlLossStore(engine)
        hosts = NetworkRules(split_list(settings.augment_hosts))
        models = ServedModels(hosts, os.environ.get, settings.augment_timeout_s)
        registry = default_registry(read_pseudonym_key(settings.pseudonym_key_file))
        recipes = RecipeCache(registry, FolderTables(settings.data_dir), models)
        key_file = settings.originals_key_file or settings.state / "keys" / "originals"
        vault = open_vault(key_file, await asyncio.to_thread(keys_in_use, engine))
        record_store, datasets = SqlRecordStore(engine, vault), SqlDatasetStore(engine)
        policy = OriginalsPolicy.parse(settings.originals)
        records = Records(record_store, datasets, recipes, announcer, policy)
        report_lost = loss_reporter(LossMetrics(metrics.registry), settings.state, clock, "tidemill-cleaning")

        def note_lost(lost: LostMessages) -> None:
            now = clock.now()
            losses.note_lost(lost, now)
            announcer.records_lost(lost, now)
            report_lost(lost)

        consumer = KafkaEventConsumer(
            settings.brokers,
            "tidemill-cleaning",
            [RECORDS_RAW],
            RawRecordHandler(records),
            dead_letters=publisher,
            metrics=ConsumerMetrics(metrics.registry),
            on_lost=note_lost,
        )
        return cls(engine, record_store, datasets, publisher, announcer, losses, models, recipes, records, consumer)


async def build(settings: CleaningSettings, metrics: RequestMetrics) -> Service:
    """Builds the service, or one of its processes that only clean arriving records."""
    cleaner = await Cleaner.open(settings, metrics)
    processes = ProcessMetrics(
        metrics.registry, "cleaning", settings.cleaning_sockets, settings.cleaning_process, settings.cleaning_processes
    )
    if settings.cleaning_process > 1:
        return Service(
            register=lambda server: (),
            consumers=[cleaner.consumer],
            tasks=[processes.serve],
            stopping=[cleaner.publisher.finish],
            closers=[cleaner.publisher.close, cleaner.engine.dispose],
        )
    engine, recipes, clock = cleaner.engine, cleaner.recipes, SystemClock()
    records, datasets = cleaner.record_store, cleaner.datasets
    translators = Translators(settings.augment_timeout_s)
    rewriting = Rewriting(
        SqlAnswerStore(engine),
        AllModels(cleaner.models, translators),
        clock,
        calls_at_once=settings.augment_calls,
        patience_s=settings.augment_patience_s,
    )
    snapshots = FolderSnapshots(ArtifactStore(settings.artifacts_url))
    backlog = Backlog(settings.brokers, "tidemill-cleaning-backlog")
    pushed = BusPushedRecords(backlog)
    dataset_cases = Datasets(datasets, datasets, records, snapshots, recipes, pushed, clock)
    explanations = Explanations(cleaner.records, datasets, datasets, snapshots, recipes)
    await asyncio.to_thread(dataset_cases.refresh_digests)
    builder = Builder(
        records=records,
        datasets=datasets,
        versions=datasets,
        snapshots=snapshots,
        recipes=recipes,
        record_cases=cleaner.records,
        announcer=cleaner.announcer,
        clock=clock,
        losses=cleaner.losses,
        pushed=pushed,
        rewriting=rewriting,
        await_timeout_s=settings.await_timeout_s,
        lost_patience_s=settings.lost_patience_s,
    )
    pool = WorkPool()

    def register(server: grpc.aio.Server) -> Sequence[str]:
        erasures = Erasures(records, datasets, datasets, snapshots, clock)
        cards = Cards(dataset_cases, snapshots)
        servicer = CleaningServicer(cleaner.records, dataset_cases, explanations, erasures, cards, pool)
        grpc_stubs.add_CleaningServiceServicer_to_server(servicer, server)
        return ["tidemill.cleaning.v1.CleaningService"]

    return Service(
        register=register,
        consumers=[cleaner.consumer, RetentionGuard(settings.brokers, [RECORDS_RAW])],
        tasks=[lambda: run_builder(builder), lambda: run_rewriting(rewriting), processes.serve],
        stopping=[cleaner.publisher.finish],
        requests=RequestIdInterceptor(SqlRequestLog(engine, clock)),
        closers=[pool.close, translators.close, backlog.close, cleaner.publisher.close, engine.dispose],
        metrics=processes.registry,
    )


def main() -> None:
    """Runs the service until it is stopped."""
    settings = load_settings(CleaningSettings)

    async def start(metrics: RequestMetrics) -> Service:
        return await build(settings, metrics)

    run_service("cleaning", settings, start)


if __name__ == "__main__":
    main()
