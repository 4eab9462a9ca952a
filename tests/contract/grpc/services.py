"""Every service on a socket of its own: real servicers, use cases, interceptors and databases; parts in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine
from tidemill.cleaning.v1 import cleaning_service_pb2_grpc as cleaning_grpc
from tidemill.inference.v1 import inference_service_pb2_grpc as inference_grpc
from tidemill.ingest.v1 import dead_letter_service_pb2_grpc as dead_letter_grpc
from tidemill.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from tidemill.ingest.v1 import source_service_pb2_grpc as source_grpc
from tidemill.pipeline.v1 import exclusion_service_pb2_grpc as exclusion_grpc
from tidemill.pipeline.v1 import judge_service_pb2_grpc as judge_grpc
from tidemill.pipeline.v1 import pipeline_service_pb2_grpc as pipeline_grpc
from tidemill.pipeline.v1 import review_service_pb2_grpc as review_grpc
from tidemill.pipeline.v1 import rollout_service_pb2_grpc as rollout_grpc
from tidemill.pipeline.v1 import trigger_service_pb2_grpc as trigger_grpc
from tidemill.telemetry.v1.telemetry_service_pb2_grpc import add_TelemetryServiceServicer_to_server
from tidemill.training.v1 import training_service_pb2_grpc as training_grpc

from services.cleaning.entrypoints.pool import WorkPool
from services.cleaning.entrypoints.servicer import CleaningServicer
from services.inference.entrypoints.servicer import InferenceServicer
from services.ingest.adapters.ledger import TemporaryLedger
from services.ingest.adapters.mark_store import SqlMarkStore
from services.ingest.adapters.pulled_store import SqlPulledStore
from services.ingest.adapters.source_store import SqlSourceStore
from services.ingest.adapters.stores import SqlBatchStore, SqlImportStore
from services.ingest.app.dead_letters import DeadLetters
from services.ingest.app.declared_sources import DeclaredSources
from services.ingest.app.imports import Imports
from services.ingest.app.intake import Intake
from services.ingest.app.interrupt import Interrupt
from services.ingest.app.policies import Policies
from services.ingest.app.runner import ImportRunner
from services.ingest.app.source_tenants import SourceTenants
from services.ingest.entrypoints.accept_pool import AcceptPool
from services.ingest.entrypoints.collection_worker import CollectionWorker
from services.ingest.entrypoints.dead_letter_servicer import DeadLetterServicer
from services.ingest.entrypoints.servicer import IngestServicer
from services.ingest.entrypoints.source_servicer import SourceServicer
from services.ingest.entrypoints.survey_pool import SurveyPool
from services.kit.clock import SystemClock
from services.kit.grpc.request_ids import RequestIdInterceptor
from services.kit.grpc.server import bind, create_server
from services.kit.ids import new_id
from services.kit.network_rules import NetworkRules
from services.kit.storage.artifacts import ArtifactStore
from services.kit.storage.requests import SqlRequestLog
from services.kit.telemetry.metrics import RequestMetrics
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
from services.pipeline.adapters.review_store import SqlReviewStore
from services.pipeline.adapters.rollout_store import SqlRolloutStore
from services.pipeline.adapters.trigger_store import SqlTriggerStore
from services.pipeline.app.capture import Captures
from services.pipeline.app.cycles import Cycles
from services.pipeline.app.drift import DriftWatch
from services.pipeline.app.exclusions import Exclusions
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.app.judges import Judges
from services.pipeline.app.reviews import Reviews
from services.pipeline.app.triggers import PipelineTriggers
from services.pipeline.domain.capture import Capture, CapturedAnswer, ReviewRules
from services.pipeline.domain.cycle import Cycle, CycleState, PipelineSpec
from services.pipeline.domain.judge import JudgeRules, JudgeSpec
from services.pipeline.entrypoints.exclusion_servicer import ExclusionServicer
from services.pipeline.entrypoints.judge_servicer import JudgeServicer
from services.pipeline.entrypoints.review_servicer import ReviewServicer
from services.pipeline.entrypoints.rollout_servicer import RolloutServicer
from services.pipeline.entrypoints.servicer import PipelineServicer
from services.pipeline.entrypoints.trigger_servicer import TriggerServicer
from services.telemetry.app.ports import Hit, Search, SearchResult
from services.telemetry.app.search import SearchService
from services.telemetry.entrypoints.servicer import TelemetryServicer
from services.training.entrypoints.servicer import TrainingServicer
from tests.conftest import OpenDatabase
from tests.dead_letters import MemoryLetters
from tests.sources import file_sources
from tests.unit.cleaning.test_use_cases import Harness as CleaningHarness
from tests.unit.inference.test_publishing import FakeAnnouncer as FakeInferenceAnnouncer
from tests.unit.inference.test_publishing import FakeServer
from tests.unit.inference.test_publishing import Harness as InferenceHarness
from tests.unit.ingest.test_runner import Bus
from tests.unit.pipeline.peers import FakeAnnouncer, FakeDatasets, FakeRecordCounts
from tests.unit.pipeline.rollout_world import World
from tests.unit.training.test_supervision import Harness as TrainingHarness
from tests.unit.training.test_supervision import finished

End = Callable[[str], None]


JUDGES = tuple(JudgeSpec(f"judge{number}", JudgeRules(max_chars=10)) for number in range(3))


class Events:
    """Three spans and three log lines; a search for one trace finds nothing."""

    async def find(self, search: Search) -> SearchResult:
        """The events after the last one of the page before, up to the requested number."""
        if search.trace_id:
            return SearchResult()
        begin = int(search.after[0]) + 1 if search.after else 0
        body: dict[str, object] = {
            "@timestamp": "2026-01-01T00:00:00Z",
            "trace.id": "0" * 32,
            "span.id": "0" * 16,
            "span.name": "s",
        }
        body |= {"span.kind": "server", "event.duration": 1, "error": False}
        numbers = range(begin, min(begin + search.size, 3))
        return SearchResult([Hit({**body, "message": str(number)}, [str(number)]) for number in numbers], 3)


@dataclass
class Services:
    """Channels by a service's full name, the calls that the parts in memory have seen, and ways to end resources."""

    folder: Path
    open_database: OpenDatabase
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    engines: dict[str, Engine] = field(default_factory=dict)
    ends: dict[str, End] = field(default_factory=dict)
    bus: Bus = field(default_factory=Bus)
    letters: MemoryLetters = field(default_factory=MemoryLetters)
    inference: InferenceHarness = field(init=False)
    training: TrainingHarness = field(init=False)
    captures: Captures = field(init=False)
    _builds: dict[int, Any] = field(default_factory=dict)

    def engine(self, service: str) -> Engine:
        """The service's database, which survives its restarts."""
        if service not in self.engines:
            self.engines[service] = self.open_database(service)
        return self.engines[service]

    def capture(self, count: int) -> list[str]:
        """Captures `count` answers, which are to be reviewed; their names."""
        self.captures.put_policy("models/m", "loop", Capture(review=ReviewRules(random_share=1.0), judges=JUDGES))
        names = sorted(f"answers/{new_id()}" for _ in range(count))
        for name in names:
            now = datetime.now(UTC)
            self.captures.keep([CapturedAnswer(name, "models/m/versions/1", "generate", "prompt", "text", now)])
        return names

    def lines(self, number: int) -> str:
        """A source's file."""
        file = self.folder / f"source{number}.jsonl"
        if not file.is_file():
            file.write_text(json.dumps({"text": f"text {number}"}) + "\n")
        return str(file)

    def build(self, number: int) -> Any:
        """A build to publish."""
        if number not in self._builds:
            self._builds[number] = self.inference.build(f"build{number}")
        return self._builds[number]

    @asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """All services serve during the block; their state is kept for the next start."""
        async with AsyncExitStack() as stack:
            for start in (self._ingest, self._cleaning, self._training, self._inference, self._pipeline):
                await start(stack)
            await self._serve(
                stack,
                "tidemill.telemetry.v1.TelemetryService",
                lambda server: add_TelemetryServiceServicer_to_server(
                    TelemetryServicer(SearchService(Events())), server
                ),
            )
            yield

    async def _serve(
        self,
        stack: AsyncExitStack,
        name: str,
        register: Callable[[grpc.aio.Server], object],
        engine: Engine | None = None,
        kept_elsewhere: Sequence[str] = (),
    ) -> None:
        log = None if engine is None else SqlRequestLog(engine, SystemClock())
        requests = None if log is None else RequestIdInterceptor(log, kept_elsewhere=kept_elsewhere)
        server = create_server(RequestMetrics("test"), traced=False, requests=requests)
        register(server)
        port = bind(server, "127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        self.channels[name] = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))

    async def _ingest(self, stack: AsyncExitStack) -> None:
        engine, clock = self.engine("ingest"), SystemClock()
        store, sources = SqlImportStore(engine), file_sources(self.folder)
        accepting, surveys = AcceptPool(2, 1 << 20), SurveyPool(4)
        stack.callback(accepting.close)
        stack.callback(surveys.close)
        declared = SqlSourceStore(engine)
        policies = Policies(declared)
        intake = Intake(self.bus, SqlBatchStore(engine), policies, SourceTenants(declared, policies), clock, 3600)
        imports = Imports(store, sources, declared, clock)
        servicer = IngestServicer(intake, imports, accepting, surveys)
        runner = ImportRunner(store, SqlPulledStore(engine), sources, self.bus, TemporaryLedger, clock)

        def end(name: str) -> None:
            item = store.import_named(name)
            assert item is not None
            runner.run(item, Interrupt())

        self.ends["import"] = end
        await self._serve(
            stack,
            "tidemill.ingest.v1.IngestService",
            lambda server: ingest_grpc.add_IngestServiceServicer_to_server(servicer, server),
            engine,
            ["IngestRecords"],
        )
        collected = DeclaredSources(declared, imports, store, policies, clock)
        collector = CollectionWorker(collected, surveys, lambda: ())
        await self._serve(
            stack,
            "tidemill.ingest.v1.SourceService",
            lambda server: source_grpc.add_SourceServiceServicer_to_server(
                SourceServicer(collected, collector), server
            ),
            engine,
        )
        letters = DeadLetterServicer(DeadLetters(self.letters, SqlMarkStore(engine), clock))
        await self._serve(
            stack,
            "tidemill.ingest.v1.DeadLetterService",
            lambda server: dead_letter_grpc.add_DeadLetterServiceServicer_to_server(letters, server),
            engine,
        )

    async def _cleaning(self, stack: AsyncExitStack) -> None:
        engine, pool = self.engine("cleaning"), WorkPool()
        stack.callback(pool.close)
        world = CleaningHarness(engine, self.folder / "artifacts")
        cases = (world.records, world.datasets, world.explanations, world.erasures, world.cards)
        servicer = CleaningServicer(*cases, pool)
        self.ends["dataset_version"] = lambda _: world.work()
        await self._serve(
            stack,
            "tidemill.cleaning.v1.CleaningService",
            lambda server: cleaning_grpc.add_CleaningServiceServicer_to_server(servicer, server),
            engine,
        )

    async def _training(self, stack: AsyncExitStack) -> None:
        engine = self.engine("training")
        world = self.training = TrainingHarness(engine)
        servicer = TrainingServicer(world.runs, world.advising)

        def end(name: str) -> None:
            while not world.runs.get(name).state.final:
                world.supervision.step()
                for started in world.workers.started:
                    world.workers.views[started] = finished()

        self.ends["run"] = end
        await self._serve(
            stack,
            "tidemill.training.v1.TrainingService",
            lambda server: training_grpc.add_TrainingServiceServicer_to_server(servicer, server),
            engine,
        )

    async def _inference(self, stack: AsyncExitStack) -> None:
        engine = self.engine("inference")
        server = FakeServer(self.folder / "models")
        self.inference = InferenceHarness(self.folder, engine, server, FakeInferenceAnnouncer())
        publishing = self.inference.publishing()
        servicer = InferenceServicer(publishing, self.inference.reconciler, self.inference.book)
        await self._serve(
            stack,
            "tidemill.inference.v1.InferenceService",
            lambda server: inference_grpc.add_InferenceServiceServicer_to_server(servicer, server),
            engine,
        )

    async def _pipeline(self, stack: AsyncExitStack) -> None:
        engine, clock = self.engine("pipeline"), SystemClock()
        store = SqlCycleStore(engine)
        trigger_store = SqlTriggerStore(engine)
        cycles = Cycles(
            store,
            FakeDatasets(),
            clock,
            lambda _: None,
            lambda _: None,
            lambda spec: trigger_store.put(spec, clock.now()),
        )
        files = StoredLessonFiles(ArtifactStore((self.folder / "artifacts").as_uri()))
        captures = self.captures = Captures(SqlCaptureStore(engine), files, clock)
        feedback = FeedbackService(SqlFeedbackStore(engine), captures, FakeAnnouncer(), clock, 1, lambda: None)

        def end(name: str) -> None:
            cycle = store.get(name)
            assert cycle is not None
            store.update(replace(cycle.ended(CycleState.SUCCEEDED, clock.now()), announced=True))

        self.ends["cycle"] = end
        servicer = PipelineServicer(cycles, feedback, captures)

        async def start(spec: PipelineSpec, request_id: str, reasons: tuple[str, ...]) -> Cycle:
            return await cycles.create(spec, request_id, "", reasons)

        texts, registry = SnapshotTexts(ArtifactStore(self.folder.as_uri())), CollectorRegistry()
        gauges, budgets = PrometheusDriftGauges(registry), PrometheusBudgetGauges(registry)
        drift = DriftWatch(SqlDriftStore(engine), texts, trigger_store, store, gauges, clock)
        known = SqlRolloutStore(engine, clock)
        triggers = TriggerServicer(
            PipelineTriggers(trigger_store, store, captures, FakeRecordCounts(), start, drift, known, budgets, clock)
        )
        self.rollouts = World(engine)
        rollouts = RolloutServicer(self.rollouts.rollouts())
        exclusions = ExclusionServicer(Exclusions(SqlExclusionStore(engine), store, clock))
        calls = JudgeCalls(NetworkRules(), lambda _: None)
        judges = JudgeServicer(Judges(SqlJudgeStore(engine), calls, captures.policies, clock))
        reviews = ReviewServicer(Reviews(SqlReviewStore(engine), feedback, clock))
        for name, register in (
            ("Pipeline", partial(pipeline_grpc.add_PipelineServiceServicer_to_server, servicer)),
            ("Trigger", partial(trigger_grpc.add_TriggerServiceServicer_to_server, triggers)),
            ("Rollout", partial(rollout_grpc.add_RolloutServiceServicer_to_server, rollouts)),
            ("Review", partial(review_grpc.add_ReviewServiceServicer_to_server, reviews)),
            ("Judge", partial(judge_grpc.add_JudgeServiceServicer_to_server, judges)),
            ("Exclusion", partial(exclusion_grpc.add_ExclusionServiceServicer_to_server, exclusions)),
        ):
            await self._serve(stack, f"tidemill.pipeline.v1.{name}Service", register, engine)
