"""Runs that build students of a tuned encoder: smaller builds that are measured, signed and answer like the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.kit.engine import LOGITS, open_encoder
from services.kit.storage.signing import MANIFEST, TrustedKeys
from services.training.domain.report import Report
from services.training.domain.students import Distillation, Student
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import TrainingSpec
from services.training.engine.loop import Cancelled
from tests.integration.training.bases import BAD, GOOD, make_encoder, write_marked, write_reviews
from tests.integration.training.jobs import marker_spec, work

_SMALL = Student(layers=1, feed_forward=0.5, vocabulary=18)
_PLAIN = replace(_SMALL, precision="fp32")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of two threads differ in the last bit from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def spec(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingSpec:
    snapshot = write_reviews(tmp_path_factory.mktemp("data") / "reviews")
    return replace(
        marker_spec(encoder, snapshot),
        task=TextClassificationTask("label", 32),
        variants=("fp32", "int8"),
        students=(_SMALL, _PLAIN),
        distillation=Distillation(max_steps=60, learning_rate=0.01),
    )


def test_students_are_built_beside_the_others_and_answer(spec: TrainingSpec, tmp_path: Path) -> None:
    report = work(tmp_path / "run", spec)
    builds = {variant.precision: variant for variant in report.variants}
    assert list(builds) == ["fp32", "int8", "int8-l1-f50-v18", "fp32-l1-f50-v18"]
    assert report.tuned.value > 0.9
    for name, build in builds.items():
        assert build.quality.value > 0.9, name
        assert build.quality.sample_size == 24
        assert build.latency_p50_ms > 0
        folder = tmp_path / "run" / "variants" / name
        assert build.uri == folder.as_uri()
        TrustedKeys(tmp_path / "run" / "keys" / "trusted").verify(folder)
        manifest = json.loads((folder / MANIFEST).read_text())
        assert (manifest["precision"], manifest["labels"]) == (name, ["negative", "positive"])
        # What is asked again where it serves.
        assert manifest["probes"]
    # Of the rest the table of 512 positions is the most.
    assert _weights(tmp_path, "fp32-l1-f50-v18") < 0.75 * _weights(tmp_path, "fp32")
    assert _weights(tmp_path, "int8-l1-f50-v18") < _weights(tmp_path, "fp32-l1-f50-v18")
    right = ["positive"] * 4 + ["negative"] * 4
    assert _answers(tmp_path, "fp32") == right
    # The two students are one in two precisions. Two of the twenty tokens are read as the unknown one, so that two of
    # the eight words may be lost on it.
    plain, quantized = (_answers(tmp_path, f"{precision}-l1-f50-v18") for precision in ("fp32", "int8"))
    assert sum(one == other for one, other in zip(plain, right, strict=True)) >= 6
    assert sum(one == other for one, other in zip(quantized, plain, strict=True)) >= 7
    assert not (tmp_path / "run" / "students").exists()
    assert sorted(path.name for path in (tmp_path / "run" / "variants").iterdir()) == sorted(builds)


def test_a_run_that_was_stopped_while_a_student_learnt_ends_with_the_same_student(
    spec: TrainingSpec, tmp_path: Path
) -> None:
    spec = replace(spec, students=(_PLAIN,))
    whole = work(tmp_path / "run", spec)
    checkpoints = tmp_path / "stopped" / "students" / _PLAIN.shape

    def after_a_checkpoint() -> bool:
        return any(checkpoints.glob("step-*"))

    with pytest.raises(Cancelled):
        work(tmp_path / "stopped", spec, should_stop=after_a_checkpoint)
    assert not (tmp_path / "stopped" / "variants" / _PLAIN.name).exists()
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000021"]
    resumed = work(tmp_path / "stopped", spec)
    assert _qualities(resumed) == _qualities(whole)
    assert _graph_weights(tmp_path / "stopped") == _graph_weights(tmp_path / "run")


def test_a_model_that_finds_parts_of_texts_has_students_too(encoder: Path, tmp_path: Path) -> None:
    spec = replace(
        marker_spec(encoder, write_marked(tmp_path / "marked")),
        variants=("fp32",),
        students=(Student(layers=1, heads=1),),
        distillation=Distillation(max_steps=60, learning_rate=0.01),
    )
    report = work(tmp_path / "run", spec)
    fp32, student = report.variants
    assert student.precision == "int8-l1-h1"
    assert student.quality.name == "entity_f1"
    assert student.quality.value > 0.8 * fp32.quality.value > 0.7


def _qualities(report: Report) -> dict[str, float]:
    return {variant.precision: variant.quality.value for variant in report.variants}


def _graph_weights(run: Path) -> bytes:
    (file,) = (run / "variants" / _PLAIN.name).glob("*.bin")
    return file.read_bytes()


def _weights(tmp_path: Path, build: str) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "run" / "variants" / build).glob("*.bin"))


def _answers(tmp_path: Path, build: str) -> list[str]:
    """What a build answers to the good and the bad words, each where it stands in the training texts."""
    from transformers import AutoTokenizer

    folder = tmp_path / "run" / "variants" / build
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    request = open_encoder(folder, threads=1).create_infer_request()
    labels, found = json.loads((folder / MANIFEST).read_text())["labels"], []
    for word in (*GOOD, *BAD):
        ids = np.asarray([tokenizer(f"the room was and {word} staff very hotel again")["input_ids"]], dtype=np.int64)
        answer = request.infer({"input_ids": ids, "attention_mask": np.ones_like(ids)})[LOGITS]
        found.append(labels[int(answer[0].argmax())])
    return found
