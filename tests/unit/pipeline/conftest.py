from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from services.kit.clock import SystemClock
from services.kit.storage.artifacts import ArtifactStore
from services.pipeline.adapters.capture_store import SqlCaptureStore
from services.pipeline.adapters.cycle_store import SqlCycleStore
from services.pipeline.adapters.drift_store import SqlDriftStore
from services.pipeline.adapters.feedback_store import SqlFeedbackStore
from services.pipeline.adapters.lesson_files import StoredLessonFiles
from services.pipeline.adapters.trigger_store import SqlTriggerStore
from services.pipeline.app.capture import Captures
from services.pipeline.app.cycle_runner import CycleDependencies
from services.pipeline.app.cycle_scheduler import CycleScheduler
from services.pipeline.app.cycles import Cycles
from services.pipeline.domain.cycle import PipelineSpec
from services.pipeline.domain.gate import Gate, Preference
from tests.conftest import OpenDatabase
from tests.unit.pipeline.peers import (
    DIGEST,
    FakeAnnouncer,
    FakeDatasets,
    FakeDeclarations,
    FakeModels,
    FakeRollouts,
    FakeWorker,
    ImpatientWakeups,
    RecordingTracing,
    report,
)


@dataclass
class Harness:
    """A pipeline with peers in memory and a real database."""

    store: SqlCycleStore
    feedback: SqlFeedbackStore
    captured: SqlCaptureStore
    triggers: SqlTriggerStore
    drift: SqlDriftStore
    artifacts: ArtifactStore
    captures: Captures
    sources: FakeDeclarations
    imports: FakeWorker
    datasets: FakeDatasets
    versions: FakeWorker
    runs: FakeWorker
    models: FakeModels
    rollouts: FakeRollouts
    announcer: FakeAnnouncer
    tracing: RecordingTracing
    spec: PipelineSpec

    def dependencies(self) -> CycleDependencies:
        """What a runner needs."""
        return CycleDependencies(
            cycles=self.store,
            sources=self.sources,
            imports=self.imports,
            datasets=self.datasets,
            dataset_versions=self.versions,
            runs=self.runs,
            models=self.models,
            rollouts=self.rollouts,
            captures=self.captures,
            announcer=self.announcer,
            wakeups=ImpatientWakeups(),
            tracing=self.tracing,
            clock=SystemClock(),
        )

    def scheduler(self) -> tuple[CycleScheduler, Cycles]:
        """A fresh process of the service."""
        scheduler, clock = CycleScheduler(self.dependencies()), SystemClock()
        return scheduler, Cycles(
            self.store,
            self.datasets,
            clock,
            scheduler.start,
            scheduler.cancel,
            lambda spec: self.triggers.put(spec, clock.now()),
        )


@pytest.fixture
def harness(open_service_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Harness:
    monkeypatch.setattr("services.kit.retrying.FIRST_PAUSE_S", 0.001)
    engine = open_service_database("pipeline")
    captured, artifacts = SqlCaptureStore(engine), ArtifactStore(tmp_path.as_uri())
    return Harness(
        captured=captured,
        triggers=SqlTriggerStore(engine),
        drift=SqlDriftStore(engine),
        artifacts=artifacts,
        captures=Captures(captured, StoredLessonFiles(artifacts), SystemClock()),
        store=SqlCycleStore(engine),
        feedback=SqlFeedbackStore(engine),
        sources=FakeDeclarations(),
        imports=FakeWorker(
            "imports",
            {
                "record_count": "10",
                "rejected_count": "1",
                "changed_count": "1",
                "withdrawn_count": "2",
                "progress": {"done": "13", "total": "13"},
            },
        ),
        datasets=FakeDatasets(),
        versions=FakeWorker(
            "datasets/d/versions",
            {
                "uri": "file:///d",
                "digest": DIGEST,
                "records_in": "10",
                "train_count": "7",
                "holdout_count": "2",
                "rejected_by_reason": {"too_short": "1"},
            },
        ),
        runs=FakeWorker(
            "runs",
            {"report": report(fp32=0.2, int8=0.198, int4=0.1), "warnings": ["precision: fp32, this cpu has no bf16."]},
        ),
        models=FakeModels(),
        rollouts=FakeRollouts(),
        announcer=FakeAnnouncer(),
        tracing=RecordingTracing(),
        spec=PipelineSpec(
            name="headlines",
            sources=({"source": "bbc", "text_folder": {"uri": "/bbc"}},),
            dataset={"name": "datasets/d", "operators": [{"name": "exact_dedup"}]},
            training={"base_model": "tiny", "model_name": "headlines"},
            gate=Gate(0.05, 0.2),
            model="models/headlines",
            preference=Preference.FASTEST,
        ),
    )
