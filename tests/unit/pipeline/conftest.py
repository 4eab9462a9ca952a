from __future__ import annotations

from dataclasses import dataclass

import pytest

from services.kit.clock import SystemClock
from services.pipeline.adapters.cycle_store import SqlCycleStore
from services.pipeline.adapters.feedback_store import SqlFeedbackStore
from services.pipeline.app.cycles import Cycles
from services.pipeline.app.driver import Driver
from services.pipeline.app.turn import Parts
from services.pipeline.domain.cycle import PipelineSpec
from services.pipeline.domain.gate import Gate, Preference
from tests.conftest import OpenDatabase
from tests.unit.pipeline.peers import (
    DIGEST,
    FakeAnnouncer,
    FakeDatasets,
    FakeModels,
    FakeWorker,
    NoTracing,
    QuickWakeups,
    report,
)


@dataclass
class World:
    """A pipeline with peers in memory and a real database."""

    store: SqlCycleStore
    feedback: SqlFeedbackStore
    imports: FakeWorker
    datasets: FakeDatasets
    versions: FakeWorker
    runs: FakeWorker
    models: FakeModels
    announcer: FakeAnnouncer
    tracing: NoTracing
    spec: PipelineSpec

    def parts(self) -> Parts:
        """What turns work with."""
        return Parts(
            cycles=self.store,
            imports=self.imports,
            datasets=self.datasets,
            dataset_versions=self.versions,
            runs=self.runs,
            models=self.models,
            announcer=self.announcer,
            wakeups=QuickWakeups(),
            tracing=self.tracing,
            clock=SystemClock(),
        )

    def driver(self) -> tuple[Driver, Cycles]:
        """A fresh process of the service."""
        driver = Driver(self.parts())
        return driver, Cycles(self.store, self.datasets, SystemClock(), driver.start, driver.cancel)


@pytest.fixture
def world(open_service_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("services.pipeline.app.turn._FIRST_PAUSE_S", 0.001)
    engine = open_service_database("pipeline")
    return World(
        store=SqlCycleStore(engine),
        feedback=SqlFeedbackStore(engine),
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
        announcer=FakeAnnouncer(),
        tracing=NoTracing(),
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
