"""Composition root of the pipeline service: `python -m services.pipeline`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import grpc
from tidemill.pipeline.v1 import exclusion_service_pb2_grpc as exclusion_stubs
from tidemill.pipeline.v1 import judge_service_pb2_grpc as judge_stubs
from tidemill.pipeline.v1 import pipeline_service_pb2_grpc as grpc_stubs
from tidemill.pipeline.v1 import review_service_pb2_grpc as review_stubs
from tidemill.pipeline.v1 import rollout_service_pb2_grpc as rollout_stubs
from tidemill.pipeline.v1 import trigger_service_pb2_grpc as trigger_stubs

from services.kit.bus.consumer import KafkaEventConsumer
from services.kit.bus.kafka import KafkaEventPublisher, ensure_topics
from services.kit.bus.metrics import ConsumerMetrics, LossMetrics
from services.kit.bus.retention import RetentionGuard
from services.kit.bus.topics import INFERENCE_EVENTS
from services.kit.clock import SystemClock
from services.kit.config import load_settings, split_list
from services.kit.grpc.client import open_channel
from services.kit.grpc.request_ids import RequestIdInterceptor
from services.kit.loops import Wakeup
from services.kit.network_rules import NetworkRules
from services.kit.runtime.losses import loss_reporter
from services.kit.runtime.service import Service, run_service
from services.kit.storage.artifacts import ArtifactStore
from services.kit.storage.database import open_database
from services.kit.storage.requests import SqlRequestLog
from services.kit.telemetry.metrics import RequestMetrics
from services.pipeline.adapters.announcer import BusAnnouncer
from services.pipeline.adapters.audit_store import SqlAuditStore
from services.pipeline.adapters.budget_gauges import PrometheusBudgetGauges
from services.pipeline.adapters.capture_store import SqlCaptureStore
from services.pipeline.adapters.cycle_store import SqlCycleStore
from services.pipeline.adapters.drift_gauges import PrometheusDriftGauges
from services.pipeline.adapters.drift_store import SnapshotTexts, SqlDriftStore
from services.pipeline.adapters.exclusion_store import SqlExclusionStore
from services.pipeline.adapters.feedback_store import SqlFeedbackStore
from services.pipeline.adapters.judge_calls import JudgeCalls
from services.pipeline.adapters.judge_store import SqlJudgeStore
from services.pipeline.adapters.lesson_files import StoredLessonFiles
from services.pipeline.adapters.notifiers import LogNotifier, MailNotifier, Notifiers, WebhookNotifier
from services.pipeline.adapters.peers import DatasetVersions, DeclaredSources, Imports, Runs, ServedModels
from services.pipeline.adapters.review_store import SqlReviewStore
from services.pipeline.adapters.rollout_metrics import SqlRolloutMetrics
from services.pipeline.adapters.rollout_routing import InferenceRouting
from services.pipeline.adapters.rollout_store import SqlRolloutStore
from services.pipeline.adapters.tracing import SpanTracing
from services.pipeline.adapters.trigger_store import SqlTriggerStore
from services.pipeline.adapters.wakeups import EventWakeups
from services.pipeline.app.capture import Captures
from services.pipeline.app.cycle_runner import CycleDependencies
from services.pipeline.app.cycle_scheduler import CycleScheduler
from services.pipeline.app.cycles import Cycles
from services.pipeline.app.drift import DriftWatch
from services.pipeline.app.exclusions import Exclusions
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.app.judges import Judges
from services.pipeline.app.notices import Notices
from services.pipeline.app.reviews import Reviews
from services.pipeline.app.rollout_ports import Notifier
from services.pipeline.app.rollout_runner import RolloutParts, RolloutRunner
from services.pipeline.app.rollouts import Rollouts
from services.pipeline.app.triggers import PipelineTriggers
from services.pipeline.domain.cycle import Cycle, PipelineSpec
from services.pipeline.entrypoints.consumer import TOPICS, PeerEventHandler
from services.pipeline.entrypoints.exclusion_servicer import ExclusionServicer
from services.pipeline.entrypoints.feedback_inbound import FeedbackInbound
from services.pipeline.entrypoints.judge_servicer import JudgeServicer
from services.pipeline.entrypoints.review_servicer import ReviewServicer
from services.pipeline.entrypoints.rollout_events import RolloutEvents
from services.pipeline.entrypoints.rollout_servicer import RolloutServicer
from services.pipeline.entrypoints.servicer import PipelineServicer
from services.pipeline.entrypoints.trigger_servicer import TriggerServicer
from services.pipeline.entrypoints.worker import (
    carry_out_erasures,
    publish_pending_feedback,
    run_judges,
    run_rollouts,
    send_notices,
    start_triggered_cycles,
    watch_drift,
)
from services.pipeline.settings import PipelineSettings

MIGRATIONS = Path(__file__).parent / "adapters" / "migrations"


async def build(settings: PipelineSettings, metrics: RequestMetrics) -> Service:
    """Builds the service."""
    await asyncio.to_thread(ensure_topics, settings.brokers)
    engine = await asyncio.to_thread(open_database, settings.database_url, MIGRATIONS, schema="pipeline")
    publisher = await asyncio.to_thread(KafkaEventPublisher, settings.brokers, "pipeline")
    clock, announcer = SystemClock(), BusAnnouncer(publisher)
    loop = asyncio.get_running_loop()
    artifacts = ArtifactStore(settings.artifacts_url)
    captures = Captures(SqlCaptureStore(engine), StoredLessonFiles(artifacts), clock)
    ingest, cleaning, training, inference = channels = [
        open_channel(address, tls=settings.peer_files)
        for address in (
            settings.ingest_address,
            settings.cleaning_address,
            settings.training_address,
            settings.inference_address,
        )
    ]
    wakeups, models = EventWakeups(loop), ServedModels(inference, training)
    metrics_of_rollouts, audit, decided = SqlRolloutMetrics(engine), SqlAuditStore(engine), Wakeup(loop)
    parts = RolloutParts(
        SqlRolloutStore(engine, clock), metrics_of_rollouts, InferenceRouting(inference), models, clock
    )
    rollouts, runner = Rollouts(parts, audit, decided.set), RolloutRunner(parts)
    notices = Notices(audit, notifiers_of(settings), clock)
    datasets, tracing = DatasetVersions(cleaning), SpanTracing()
    dependencies = CycleDependencies(
        cycles=SqlCycleStore(engine),
        sources=DeclaredSources(ingest),
        imports=Imports(ingest),
        datasets=datasets,
        dataset_versions=datasets,
        runs=Runs(training),
        models=models,
        rollouts=rollouts,
        captures=captures,
        announcer=announcer,
        wakeups=wakeups,
        tracing=tracing,
        clock=clock,
    )
    scheduler = CycleScheduler(dependencies)
    trigger_store = SqlTriggerStore(engine)
    evaluators = JudgeCalls(NetworkRules(split_list(settings.judge_hosts)), os.environ.get)
    judges = Judges(SqlJudgeStore(engine), evaluators, captures.policies, clock)
    cycles = Cycles(
        dependencies.cycles,
        datasets,
        clock,
        started=scheduler.start,
        cancelled=scheduler.cancel,
        register=lambda spec: trigger_store.put(spec, clock.now()),
        check_judge=evaluators.check,
    )

    async def start_triggered(spec: PipelineSpec, request_id: str, reasons: tuple[str, ...]) -> Cycle:
        with tracing.triggered() as traceparent:
            return await cycles.create(spec, request_id, traceparent, reasons)

    gauges = PrometheusDriftGauges(metrics.registry)
    drift = DriftWatch(
        SqlDriftStore(engine), SnapshotTexts(artifacts), trigger_store, dependencies.cycles, gauges, clock
    )
    triggers = PipelineTriggers(
        trigger_store,
        dependencies.cycles,
        captures,
        datasets,
        start_triggered,
        drift,
        parts.store,
        PrometheusBudgetGauges(metrics.registry),
        clock,
    )
    recorded = Wakeup(loop)
    feedback = FeedbackService(
        SqlFeedbackStore(engine), captures, announcer, clock, settings.keep_answers_days, recorded.set
    )
    others = FeedbackInbound(feedback, PeerEventHandler(feedback, captures, wakeups.notify).handle)
    reviews = Reviews(SqlReviewStore(engine), feedback, clock)
    consumer = KafkaEventConsumer(
        settings.brokers,
        "tidemill-pipeline",
        (*TOPICS, INFERENCE_EVENTS),
        RolloutEvents(metrics_of_rollouts, audit, others.handle),
        dead_letters=publisher,
        metrics=ConsumerMetrics(metrics.registry),
        on_lost=loss_reporter(LossMetrics(metrics.registry), settings.state, clock, "tidemill-pipeline"),
    )
    retention = RetentionGuard(settings.brokers, TOPICS)

    exclusions = Exclusions(SqlExclusionStore(engine), dependencies.cycles, clock)

    def register(server: grpc.aio.Server) -> Sequence[str]:
        grpc_stubs.add_PipelineServiceServicer_to_server(PipelineServicer(cycles, feedback, captures), server)
        trigger_stubs.add_TriggerServiceServicer_to_server(TriggerServicer(triggers), server)
        rollout_stubs.add_RolloutServiceServicer_to_server(RolloutServicer(rollouts), server)
        review_stubs.add_ReviewServiceServicer_to_server(ReviewServicer(reviews), server)
        exclusion_stubs.add_ExclusionServiceServicer_to_server(ExclusionServicer(exclusions), server)
        judge_stubs.add_JudgeServiceServicer_to_server(JudgeServicer(judges), server)
        names = ("Pipeline", "Trigger", "Rollout", "Review", "Exclusion", "Judge")
        return [f"tidemill.pipeline.v1.{name}Service" for name in names]

    return Service(
        register=register,
        consumers=[consumer, retention],
        tasks=[
            scheduler.run,
            lambda: publish_pending_feedback(feedback, recorded),
            lambda: start_triggered_cycles(triggers),
            lambda: watch_drift(drift),
            lambda: carry_out_erasures(exclusions, datasets),
            lambda: run_judges(judges),
            lambda: run_rollouts(runner, decided),
            lambda: send_notices(notices),
        ],
        stopping=[publisher.finish],
        requests=RequestIdInterceptor(SqlRequestLog(engine, clock)),
        closers=[*(channel.close for channel in channels), publisher.close, engine.dispose],
    )


def notifiers_of(settings: PipelineSettings) -> Notifiers:
    """Whom decisions about roll-outs are sent to."""
    found: list[Notifier] = []
    if settings.notify_webhook is not None:
        found.append(WebhookNotifier(settings.notify_webhook))
    if settings.notify_smtp is not None:
        receivers = [each.strip() for each in settings.notify_to.split(",")]
        user, password = settings.notify_smtp_user, settings.notify_smtp_password_file
        found.append(MailNotifier(settings.notify_smtp, settings.notify_from, receivers, user, password))
    return Notifiers([*found, LogNotifier()])


def main() -> None:
    """Runs the service until it is stopped."""
    settings = load_settings(PipelineSettings)

    async def start(metrics: RequestMetrics) -> Service:
        return await build(settings, metrics)

    run_service("pipeline", settings, start)


if __name__ == "__main__":
    main()
