"""A run that assigns any number of labels: from lists in a data set to builds that assign them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from services.kit.errors import FailedPreconditionError
from services.kit.probes import Probes
from services.kit.storage.signing import MANIFEST
from services.training.adapters.job import Champion
from services.training.domain.students import Distillation, Student
from services.training.domain.tasks import MultiLabelClassificationTask
from services.training.engine.labels import calibrates
from services.training.engine.methods.lora import Lora
from tests.integration.training.bases import make_encoder, write_snapshot, write_tagged
from tests.integration.training.jobs import Trained, labeller_spec, train, work

TASK = MultiLabelClassificationTask("labels", 32, calibration_share=0.3)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tagged(tmp_path_factory.mktemp("tagged") / "snapshot")


@pytest.fixture(scope="module")
def trained(encoder: Path, snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("labeller")
    student = Student(layers=1, precision="fp32")
    how = Distillation(epochs=20, learning_rate=0.005)
    spec = labeller_spec(encoder, snapshot, TASK, students=(student,), distillation=how)
    return train(folder / "run", spec)


def test_what_was_labelled_is_found_by_the_model_and_by_its_builds(trained: Trained) -> None:
    report = trained.report
    assert report.tuned.name == "micro_f1"
    assert report.tuned.value > 0.9
    assert report.tuned.ci_low <= report.tuned.value <= report.tuned.ci_high
    figures = report.figures
    assert figures["macro_f1_ci_low"] <= figures["macro_f1"] <= figures["macro_f1_ci_high"]
    assert figures["subset_accuracy"] > 0.8
    assert figures["constant_micro_f1"] < report.tuned.value
    assert 0 < figures["calibration_examples"] < figures["train_examples"]
    fp32, int8, student = report.variants
    assert fp32.quality.value == pytest.approx(report.tuned.value, abs=0.02)
    assert int8.quality.value > 0.8
    assert student.quality.value > 0.8
    assert figures["same_answer_as_merged_fp32"] == 1
    assert report.base is None
    assert report.champion is None


def test_a_build_says_what_serving_needs(trained: Trained) -> None:
    manifest = json.loads((trained.folder / "variants" / "fp32" / MANIFEST).read_text())
    assert manifest["task"] == "multi_label_classification"
    assert manifest["labels"] == ["complaint", "praise", "repeated"]
    assert len(manifest["thresholds"]) == 3
    assert all(0 < threshold < 1 for threshold in manifest["thresholds"])
    probes = Probes.read(manifest)
    assert probes is not None
    assert all(isinstance(json.loads(answer), list) for answer in probes.answers)


def test_thresholds_come_from_training_records_that_are_not_learnt(trained: Trained, snapshot: Path) -> None:
    rows = pq.read_table(snapshot / "train.parquet").to_pylist()
    kept = [row for row in rows if calibrates(row, TASK.calibration_share)]
    assert trained.report.figures["calibration_examples"] == len(kept)
    assert trained.report.figures["train_examples"] == len(rows) - len(kept)


def test_a_separated_column_teaches_the_same(trained: Trained, encoder: Path, snapshot: Path, tmp_path: Path) -> None:
    task = MultiLabelClassificationTask("tags", 32, ";", calibration_share=0.3)
    spec = labeller_spec(encoder, snapshot, task, variants=trained.spec.variants[:1])
    assert work(tmp_path / "run", spec).tuned == trained.report.tuned


def test_a_run_is_compared_with_the_champion_on_the_hold_out_and_on_corrections(
    trained: Trained, snapshot: Path, tmp_path: Path
) -> None:
    corrected = shutil.copytree(snapshot, tmp_path / "corrected")
    pq.write_table(pq.read_table(corrected / "holdout.parquet").slice(0, 9), corrected / "corrections.parquet")
    # It hardly learns, so the champion is better.
    spec = replace(
        trained.spec,
        dataset_uri=corrected.as_uri(),
        method=Lora(r=4),
        optimization=replace(trained.spec.optimization, max_steps=1),
        variants=trained.spec.variants[:1],
        students=(),
        distillation=Distillation(),
    )
    champion = Champion("runs/first", trained.folder.as_uri(), trained.spec)
    report = work(tmp_path / "run", spec, champion)
    assert report.champion == trained.report.tuned
    assert report.over_champion is not None
    assert report.over_champion.value == pytest.approx(report.tuned.value - trained.report.tuned.value)
    assert report.over_champion.ci_high < 0
    assert report.corrections is not None
    assert report.corrections.champion is not None
    assert report.corrections.tuned.sample_size == 9


def test_labels_that_cannot_be_read_end_the_run_with_the_record(encoder: Path, tmp_path: Path) -> None:
    row = {"record_id": "rec_9", "source": "test", "text": "good", "labels": "praise"}
    with pytest.raises(FailedPreconditionError, match="rec_9"):
        work(tmp_path / "run", labeller_spec(encoder, write_snapshot(tmp_path / "wrong", [row], [row]), TASK))


def test_a_data_set_without_labels_is_refused(encoder: Path, tmp_path: Path) -> None:
    row = {"record_id": "rec_9", "source": "test", "text": "good", "labels": "[]"}
    with pytest.raises(FailedPreconditionError, match="no label"):
        work(tmp_path / "run", labeller_spec(encoder, write_snapshot(tmp_path / "empty", [row], [row]), TASK))
