"""A run that finds named parts of texts: from spans in a data set to builds that find them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from services.kit.errors import FailedPreconditionError
from services.kit.storage.signing import MANIFEST
from services.training.adapters.job import Champion
from tests.integration.training.bases import make_encoder, write_marked, write_snapshot
from tests.integration.training.jobs import Trained, marker_spec, train, work


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def trained(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("marker")
    spec = marker_spec(encoder, write_marked(folder / "marked"))
    return train(folder / "run", spec)


def test_what_was_marked_is_found_by_the_model_and_by_its_builds(trained: Trained) -> None:
    report = trained.report
    assert report.tuned.name == "entity_f1"
    assert report.tuned.value > 0.9
    assert report.figures["entity_precision"] > 0.9
    # Half of the words of the hold-out were never marked in training.
    assert 0 < report.figures["lexicon_entity_f1"] <= 1
    fp32, int8 = report.variants
    assert fp32.quality.value == pytest.approx(report.tuned.value, abs=0.02)
    assert int8.quality.value > 0.8
    assert fp32.latency_p50_ms > 0
    assert report.figures["same_answer_as_merged_fp32"] > 0.9
    assert report.figures["same_answer_as_merged_int8"] > 0.5
    manifest = json.loads((trained.folder / "variants" / "fp32" / MANIFEST).read_text())
    assert manifest["task"] == "token_classification"
    assert manifest["labels"] == ["O", "B-BAD", "I-BAD", "B-GOOD", "I-GOOD"]
    assert any("(GOOD)" in example.tuned for example in report.examples)
    assert report.champion is None
    assert report.corrections is None


def test_a_run_is_compared_with_the_champion_on_the_hold_out_and_on_corrections(
    trained: Trained, tmp_path: Path
) -> None:
    snapshot = shutil.copytree(Path(trained.spec.dataset_uri.removeprefix("file://")), tmp_path / "corrected")
    pq.write_table(pq.read_table(snapshot / "holdout.parquet").slice(0, 5), snapshot / "corrections.parquet")
    # It hardly learns, so the champion is better.
    spec = replace(
        trained.spec,
        dataset_uri=snapshot.as_uri(),
        optimization=replace(trained.spec.optimization, max_steps=1),
        variants=trained.spec.variants[:1],
    )
    champion = Champion("runs/first", trained.folder.as_uri(), trained.spec)
    report = work(tmp_path / "run", spec, champion)
    assert report.champion_run == "runs/first"
    assert report.champion == trained.report.tuned
    assert report.over_champion is not None
    assert report.over_champion.value == pytest.approx(report.tuned.value - trained.report.tuned.value)
    assert report.over_champion.ci_high < 0
    assert report.corrections is not None
    assert report.corrections.champion is not None
    assert report.corrections.champion.value > report.corrections.tuned.value
    assert report.corrections.tuned.sample_size == 5


def test_spans_that_cannot_be_read_end_the_run_with_the_record(encoder: Path, tmp_path: Path) -> None:
    row = {"record_id": "rec_9", "source": "test", "text": "good", "spans": '[{"start": 0, "end": 9, "label": "GOOD"}]'}
    with pytest.raises(FailedPreconditionError, match="rec_9"):
        work(tmp_path / "run", marker_spec(encoder, write_snapshot(tmp_path / "wrong", [row], [row])))


def test_a_data_set_without_spans_is_refused(encoder: Path, tmp_path: Path) -> None:
    row = {"record_id": "rec_9", "source": "test", "text": "good", "spans": "[]"}
    with pytest.raises(FailedPreconditionError, match="has no span"):
        work(tmp_path / "run", marker_spec(encoder, write_snapshot(tmp_path / "empty", [row], [row])))
