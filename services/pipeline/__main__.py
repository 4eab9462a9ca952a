"""Composition root of the pipeline service: `python -m services.pipeline`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc
from tidemill.pipeline.v1 import pipeline_service_pb2_grpc as grpc_stubs
from tidemill.pipeline.v1 import trigger_service_pb2_grpc as trigger_stubs

from services.kit.bus.consumer import KafkaEventConsumer
from services.kit.bus.kafka import KafkaEventPublisher, ensure_topics
from services.kit.bus.retention import RetentionGuard
from services.kit.clock import SystemClock
from services.kit.config import load_settings
from services.kit.grpc.client import open_channel
from services.kit.grpc.request_ids import RequestIdInterceptor
from services.kit.runtime.loops import Wakeup
from services.kit.runtime.losses import loss_reporter
from services.kit.runtime.service import Service, run_service
from services.kit.storage.artifacts import ArtifactStore
from services.kit.storage.database import open_database
from services.kit.storage.requests import SqlRequestLog
from services.kit.telemetry.metrics import LossMetrics, RequestMetrics
from services.pipeline.adapters.announcer import BusAnnouncer
from services.pipeline.adapters.capture_store import SqlCaptureStore
from services.pipeline.adapters.cycle_store import SqlCycleStore
from services.pipeline.adapters.feedback_store import SqlFeedbackStore
from services.pipeline.adapters.lesson_files import StoredLessonFiles
from services.pipeline.adapters.peers import DatasetVersions, Imports, Runs, ServedModels
from services.pipeline.adapters.tracing import SpanTracing
from services.pipeline.adapters.trigger_store import SqlTriggerStore
from services.pipeline.adapters.wakeups import EventWakeups
from services.pipeline.app.capture import Captures
from services.pipeline.app.cycle_runner import CycleDependencies
from services.pipeline.app.cycle_scheduler import CycleScheduler
from services.pipeline.app.cycles import Cycles
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.app.triggers import PipelineTriggers
from services.pipeline.domain.cycle import Cycle, PipelineSpec
from services.pipeline.entrypoints.consumer import TOPICS, PeerEventHandler
from services.pipeline.entrypoints.feedback_inbound import FeedbackInbound
from services.pipeline.entrypoints.servicer import PipelineServicer
from services.pipeline.entrypoints.trigger_servicer import TriggerServicer
from services.pipeline.entrypoints.worker import publish_pending_feedback, start_triggered_cycles
from services.pipeline.settings import PipelineSettings

MIGRATIONS = Path(__file__).parent / "adapters" / "migrations"


async def build(settings: PipelineSettings, metrics: RequestMetrics) -> Service:
    """Builds the service."""
    await asyncio.to_thread(ensure_topics, settings.brokers)
    engine = await asyncio.to_thread(open_database, settings.database_url, MIGRATIONS, schema="pipeline")
    publisher = await asyncio.to_thread(KafkaEventPublisher, settings.brokers, "pipeline")
    clock, announcer = SystemClock(), BusAnnouncer(publisher)
    captures = Captures(SqlCaptureStore(engine), StoredLessonFiles(ArtifactStore(settings.artifacts_url)), clock)
    ingest, cleaning, training, inference = channels = [
        open_channel(address, tls=settings.peer_files)
        for address in (
            settings.ingest_address,
            settings.cleaning_address,
            settings.training_address,
            settings.inference_address,
        )
    ]
    wakeups = EventWakeups(asyncio.get_running_loop())
    datasets, tracing = DatasetVersions(cleaning), SpanTracing()
    dependencies = CycleDependencies(
        cycles=SqlCycleStore(engine),
        imports=Imports(ingest),
        datasets=datasets,
        dataset_versions=datasets,
        runs=Runs(training),
        models=ServedModels(inference, training),
        captures=captures,
        announcer=announcer,
        wakeups=wakeups,
        tracing=tracing,
        clock=clock,
    )
    scheduler = CycleScheduler(dependencies)
    trigger_store = SqlTriggerStore(engine)
    cycles = Cycles(
        dependencies.cycles,
        datasets,
        clock,
        started=scheduler.start,
        cancelled=scheduler.cancel,
        register=lambda spec: trigger_store.put(spec, clock.now()),
    )

    async def start_triggered(spec: PipelineSpec, request_id: str, reasons: tuple[str, ...]) -> Cycle:
        with tracing.triggered() as traceparent:
            return await cycles.create(spec, request_id, traceparent, reasons)

    triggers = PipelineTriggers(
        trigger_store,
        dependencies.cycles,
        captures,
        datasets,
        start_triggered,
        clock,
    )
    recorded = Wakeup(asyncio.get_running_loop())
    feedback = FeedbackService(
        SqlFeedbackStore(engine), captures, announcer, clock, settings.keep_answers_days, recorded.set
    )
    consumer = KafkaEventConsumer(
        settings.brokers,
        "tidemill-pipeline",
        TOPICS,
        FeedbackInbound(feedback, PeerEventHandler(feedback, captures, wakeups.notify).handle),
        dead_letters=publisher,
        on_lost=loss_reporter(LossMetrics(metrics.registry), settings.state, clock, "tidemill-pipeline"),
    )
    retention = RetentionGuard(settings.brokers, TOPICS)

    def register(server: grpc.aio.Server) -> Sequence[str]:
        grpc_stubs.add_PipelineServiceServicer_to_server(PipelineServicer(cycles, feedback, captures), server)
        trigger_stubs.add_TriggerServiceServicer_to_server(TriggerServicer(triggers), server)
        return ["tidemill.pipeline.v1.PipelineService", "tidemill.pipeline.v1.TriggerService"]

    return Service(
        register=register,
        consumers=[consumer, retention],
        tasks=[
            scheduler.run,
            lambda: publish_pending_feedback(feedback, recorded),
            lambda: start_triggered_cycles(triggers),
        ],
        stopping=[publisher.finish],
        requests=RequestIdInterceptor(SqlRequestLog(engine, clock)),
        closers=[*(channel.close for channel in channels), publisher.close, engine.dispose],
    )


def main() -> None:
    """Runs the service until it is stopped."""
    settings = load_settings(PipelineSettings)

    async def start(metrics: RequestMetrics) -> Service:
        return await build(settings, metrics)

    run_service("pipeline", settings, start)


if __name__ == "__main__":
    main()
