"""From a correction to a row of a training set: the pipeline's file, read by ingest, cleaned by cleaning."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlparse

import yaml

from services.cleaning.app.snapshot import compose_snapshot
from services.cleaning.domain.dataset import DatasetSpec, HoldoutSpec
from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.domain.record import RawRecord
from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.registry import default_registry
from services.ingest.app.interrupt import Interrupt
from services.ingest.domain import record as ingested
from services.ingest.domain.source_import import SourceSpec
from services.ingest.engine.formats.json_lines import JsonLines
from services.kit.clock import SystemClock
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.domain.capture import Capture, CapturedAnswer
from services.pipeline.domain.feedback import Feedback
from services.pipeline.domain.learning import FeedbackUse
from services.training.adapters.snapshots import by_weight
from tests.sources import file_sources
from tests.unit.pipeline.conftest import Harness

ROOT = Path(__file__).parents[3]
ARTICLE = (
    "The central bank left its rate where it was.\n"
    + "Its governor said that prices rise more slowly than feared. " * 3
)


def test_a_corrected_headline_reaches_the_training_set_of_its_pipeline(harness: Harness, tmp_path: Path) -> None:
    file = yaml.safe_load((ROOT / "pipelines" / "headlines.yaml").read_text(encoding="utf-8"))
    training = {"base_model": "b", "model_name": "headlines", "generation": file["training"]["generation"]}
    pipeline = replace(harness.spec, training=training, capture=Capture(), feedback=FeedbackUse(corrections=3))
    harness.captures.put_policy(pipeline.model, pipeline.name, pipeline.capture)
    version, now = f"{pipeline.model}/versions/7", datetime.now(UTC)
    harness.captures.keep([CapturedAnswer("answers/a", version, "generate", ARTICLE, "Bank raises rate", now)])
    service = FeedbackService(harness.feedback, harness.captures, harness.announcer, SystemClock(), 30, lambda: None)
    service.record([Feedback("", "answers/a", -1, "Bank holds rate", "anna@example.org", now)])
    written = harness.captures.write_lessons(pipeline)

    path = Path(urlparse(written["uri"]).path)
    source = SourceSpec(pipeline.feedback_source, JsonLines(str(path), id_field="record_id"), may_be_empty=True)
    sources, interrupt = file_sources(tmp_path), Interrupt()
    (read,) = sources.read(source, sources.survey(source, interrupt), interrupt)
    assert isinstance(read, ingested.RawRecord)
    ingested.check_record(read)

    operators = [
        OperatorSpec(item) if isinstance(item, str) else OperatorSpec(*next(iter(item.items())))
        for item in file["dataset"]["operators"]
    ]
    required = file["dataset"]["required_attributes"]
    recipe = compile_recipe(default_registry(), operators, required)
    raw = [
        RawRecord(read.record_id, read.source, read.text, read.attributes),
        RawRecord("1", "bbc", "Rain ends\n" + "It rained for a week, and then it was dry again. " * 6, {}),
    ]
    spec = DatasetSpec(
        ("bbc", read.source), tuple(operators), HoldoutSpec(0.0), tuple(required), feedback_sources=(read.source,)
    )
    judged = [(record, recipe.clean(record.text, record.attributes)) for record in raw]
    content = compose_snapshot("datasets/bbc-headlines", spec, recipe, judged)
    row = next(row for row in content.train if row.source == read.source)
    # The prompt is whole: its first line is not taken for a headline.
    assert row.text.startswith("The central bank left its rate where it was.")
    assert row.attributes["headline"] == "Bank holds rate"
    assert row.attributes["rejected_answer"] == "Bank raises rate"
    assert row.attributes["feedback_version"] == version
    assert "anna" not in repr(content)
    assert content.manifest["counts"]["feedback"]["correction"] == 1
    learnt = by_weight([{"record_id": r.record_id, **r.attributes} for r in content.train])
    assert [item["record_id"] for item in learnt].count("answers/a") == 3
