"""A run that embeds texts: from texts and their positives to builds whose vectors find them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from services.kit.engine import EMBEDDING, open_encoder
from services.kit.errors import FailedPreconditionError, InvalidArgumentError
from services.kit.storage.signing import MANIFEST
from services.training.adapters.job import Champion
from services.training.domain.tasks import TextEmbeddingTask
from services.training.engine.methods.lora import Lora
from tests.integration.training.bases import make_encoder, write_snapshot, write_titled
from tests.integration.training.jobs import Trained, embedding_spec, train, work


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def titled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_titled(tmp_path_factory.mktemp("data") / "titled")


@pytest.fixture(scope="module")
def trained(encoder: Path, titled: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("titles")
    task = TextEmbeddingTask("title", 32, "other", dimensions=(8,))
    spec = embedding_spec(encoder, titled, task=task)
    return train(folder / "run", spec)


def test_texts_find_their_titles_by_the_model_and_by_its_builds(trained: Trained) -> None:
    report = trained.report
    assert report.tuned.name == "mrr_at_10"
    assert report.base is not None
    assert report.difference is not None
    assert report.base.value < report.tuned.value
    assert report.difference.ci_low > 0
    assert report.tuned.value > 0.8
    figures = report.figures
    assert figures["recall_at_1_ci_low"] <= figures["recall_at_1"] <= figures["recall_at_1_ci_high"]
    assert figures["recall_at_1"] <= report.tuned.value <= figures["recall_at_10"]
    assert figures["mrr_at_10_dimensions_8"] > report.base.value
    assert figures["final_loss"] < figures["first_loss"]
    fp32, int8 = report.variants
    assert fp32.quality.value == pytest.approx(report.tuned.value, abs=0.02)
    assert int8.quality.value > 0.7
    assert fp32.latency_p50_ms > 0
    assert figures["cosine_to_merged_fp32"] > 0.9999
    assert figures["cosine_to_merged_int8"] > 0.9
    assert report.warnings == ()
    assert all(example.reference and example.tuned and example.base for example in report.examples)


def test_a_build_gives_vectors_of_length_one_and_no_labels(trained: Trained) -> None:
    build = trained.folder / "variants" / "fp32"
    manifest = json.loads((build / MANIFEST).read_text())
    assert (manifest["task"], manifest["labels"], manifest["embedding_size"]) == ("text_embedding", [], 32)
    assert manifest["cosine_to_merged"] == trained.report.figures["cosine_to_merged_fp32"]
    assert all(answer.startswith("vector [") for answer in manifest["probes"]["answers"])
    graph = open_encoder(build, threads=1)
    assert [output.get_names() for output in graph.outputs] == [{EMBEDDING}]
    found = graph.create_infer_request().infer({"input_ids": [[2, 4, 3]], "attention_mask": [[1, 1, 1]]})[EMBEDDING]
    assert (found**2).sum() == pytest.approx(1, abs=1e-5)


def test_adapters_learn_it_and_it_is_compared_with_the_champion(trained: Trained, tmp_path: Path) -> None:
    # It hardly learns, so the champion is better.
    spec = replace(
        trained.spec,
        task=TextEmbeddingTask("title", 32),
        method=Lora(r=4, alpha=8),
        optimization=replace(trained.spec.optimization, max_steps=2),
        variants=trained.spec.variants[:1],
    )
    report = work(tmp_path / "run", spec, Champion("runs/first", trained.folder.as_uri(), trained.spec))
    assert report.champion == trained.report.tuned
    assert report.over_champion is not None
    assert report.over_champion.value == pytest.approx(report.tuned.value - trained.report.tuned.value)
    assert report.over_champion.ci_high < 0
    assert report.base == trained.report.base
    assert report.figures["trainable_parameters"] < report.figures["parameters"]
    assert report.figures["cosine_to_merged_fp32"] > 0.9999
    assert (tmp_path / "run" / "adapter").is_dir()


def test_a_restarted_run_reuses_what_it_has(trained: Trained) -> None:
    again = work(trained.folder, trained.spec)
    assert replace(again, variants=()) == replace(trained.report, variants=())
    assert [variant.digest for variant in again.variants] == [variant.digest for variant in trained.report.variants]


def _rows(count: int, **columns: str) -> list[dict[str, str]]:
    return [
        {"record_id": f"rec_{at}", "source": "test", "text": "good room", "title": f"good {at}", **columns}
        for at in range(count)
    ]


@pytest.mark.parametrize(
    ("train", "holdout", "message"),
    [
        (_rows(3, title=" "), _rows(3), "positive_field: column 'title' of the training record rec_0 is empty"),
        (_rows(3), _rows(3, title=""), "positive_field: column 'title' of the hold-out record rec_0 is empty"),
        (_rows(1), _rows(3), "one text only in the 1 training records"),
        (_rows(3), _rows(1), "one text only in the 1 hold-out records"),
        (_rows(3, title="good"), _rows(3), "one text only in the 3 training records"),
    ],
)
def test_data_that_cannot_teach_is_refused_with_the_field(
    encoder: Path, tmp_path: Path, train: list[dict[str, str]], holdout: list[dict[str, str]], message: str
) -> None:
    spec = embedding_spec(encoder, write_snapshot(tmp_path / "data", train, holdout))
    with pytest.raises(FailedPreconditionError, match=message):
        work(tmp_path / "run", spec)


def test_a_column_that_is_missing_or_empty_is_refused_with_the_field(encoder: Path, tmp_path: Path) -> None:
    rows = _rows(3, other="")
    snapshot = write_snapshot(tmp_path / "data", rows, rows)
    for task, message in (
        (TextEmbeddingTask("heading", 32), r"spec\.text_embedding\.positive_field: the data set has no column"),
        (TextEmbeddingTask("title", 32, "wrong"), r"spec\.text_embedding\.negative_field: the data set has no column"),
        (TextEmbeddingTask("title", 32, "other"), r"spec\.text_embedding\.negative_field: column 'other' is empty"),
    ):
        with pytest.raises((FailedPreconditionError, InvalidArgumentError), match=message):
            work(tmp_path / "run", embedding_spec(encoder, snapshot, task=task))
