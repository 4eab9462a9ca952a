"""A run that finds named parts of texts: from spans in a data set to builds that find them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.kit.errors import FailedPreconditionError
from services.kit.storage.signing import MANIFEST
from tests.integration.training.bases import make_encoder, write_marked, write_snapshot
from tests.integration.training.jobs import marker_spec, work


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("models") / "bert")


def test_what_was_marked_is_found_by_the_model_and_by_its_builds(encoder: Path, tmp_path: Path) -> None:
    report = work(tmp_path / "run", marker_spec(encoder, write_marked(tmp_path / "marked")))
    assert report.tuned.name == "entity_f1"
    assert report.tuned.value > 0.9
    assert report.figures["entity_precision"] > 0.9
    # Half of the words of the hold-out were never marked in training.
    assert 0 < report.figures["lexicon_entity_f1"] <= 1
    fp32, int8 = report.variants
    assert fp32.quality.value == pytest.approx(report.tuned.value, abs=0.02)
    assert int8.quality.value > 0.8
    assert fp32.latency_p50_ms > 0
    manifest = json.loads((tmp_path / "run" / "variants" / "fp32" / MANIFEST).read_text())
    assert manifest["task"] == "token_classification"
    assert manifest["labels"] == ["O", "B-BAD", "I-BAD", "B-GOOD", "I-GOOD"]
    assert any("(GOOD)" in example.tuned for example in report.examples)


def test_spans_that_cannot_be_read_end_the_run_with_the_record(encoder: Path, tmp_path: Path) -> None:
    row = {"record_id": "rec_9", "source": "test", "text": "good", "spans": '[{"start": 0, "end": 9, "label": "GOOD"}]'}
    with pytest.raises(FailedPreconditionError, match="rec_9"):
        work(tmp_path / "run", marker_spec(encoder, write_snapshot(tmp_path / "wrong", [row], [row])))


def test_a_data_set_without_spans_is_refused(encoder: Path, tmp_path: Path) -> None:
    row = {"record_id": "rec_9", "source": "test", "text": "good", "spans": "[]"}
    with pytest.raises(FailedPreconditionError, match="has no span"):
        work(tmp_path / "run", marker_spec(encoder, write_snapshot(tmp_path / "empty", [row], [row])))
