"""A run that learns labels with an order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from services.kit.errors import FailedPreconditionError
from services.kit.storage.signing import MANIFEST
from services.training.adapters.job import Champion
from services.training.domain.students import Distillation, Student
from services.training.domain.tasks import OrdinalClassificationTask
from services.training.engine.methods.lora import Lora
from tests.integration.training.bases import STARS, make_encoder, write_rated, write_snapshot
from tests.integration.training.jobs import labeller_spec, work

TASK = OrdinalClassificationTask("stars", 32, STARS)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("models") / "bert")


def test_what_was_rated_is_found_and_compared(encoder: Path, tmp_path: Path) -> None:
    student = Student(layers=1, precision="fp32")
    how = Distillation(epochs=20, learning_rate=0.005)
    spec = labeller_spec(encoder, write_rated(tmp_path / "rated"), TASK, students=(student,), distillation=how)
    report = work(tmp_path / "run", spec)
    assert report.tuned.name == "quadratic_weighted_kappa"
    assert report.tuned.value > 0.9
    figures = report.figures
    assert figures["accuracy"] > figures["majority_accuracy"]
    assert figures["mean_absolute_error"] < figures["median_mean_absolute_error"]
    assert figures["accuracy_ci_low"] <= figures["accuracy"] <= figures["accuracy_ci_high"]
    assert figures["same_answer_as_merged_fp32"] == 1
    assert all(variant.quality.value > 0.8 for variant in report.variants)
    manifest = json.loads((tmp_path / "run" / "variants" / "int8" / MANIFEST).read_text())
    # Serving answers as with any classifier of texts.
    assert (manifest["task"], manifest["labels"]) == ("text_classification", list(STARS))
    short = replace(
        spec,
        method=Lora(r=4),
        optimization=replace(spec.optimization, max_steps=1),
        variants=spec.variants[:1],
        students=(),
        distillation=Distillation(),
    )
    later = work(tmp_path / "later", short, Champion("runs/first", (tmp_path / "run").as_uri(), spec))
    assert later.champion == report.tuned
    assert later.over_champion is not None
    assert later.over_champion.ci_high < 0


@pytest.mark.parametrize(("label", "why"), [("6", "rec_9 holds '6'"), ("5", "no record to learn from has '1', '2'")])
def test_labels_other_than_those_of_the_spec_are_refused(label: str, why: str, encoder: Path, tmp_path: Path) -> None:
    row = {"record_id": "rec_9", "source": "test", "text": "good", "stars": label}
    snapshot = write_snapshot(tmp_path / "wrong", [row], [row])
    with pytest.raises(FailedPreconditionError, match=why):
        work(tmp_path / "run", labeller_spec(encoder, snapshot, TASK))
