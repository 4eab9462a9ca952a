"""Each method from a data set to builds: what the runtime that serves answers is what the trained model answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.kit.storage.signing import MANIFEST
from services.training.domain.tasks import GenerationTask
from services.training.engine.methods.dpo import Dpo
from services.training.engine.methods.kto import Kto
from services.training.engine.methods.lora import Lora
from services.training.engine.methods.prompt_tuning import PromptTuning
from services.training.engine.virtual_tokens import token_name
from services.training.worker.parity import parity_warnings
from tests.integration.training.bases import make_writer, write_preferences, write_reviews
from tests.integration.training.jobs import assert_built_as_trained, work, writer_spec


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_writer(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews")


def test_tuned_prompts_are_in_the_build_and_answered_from(writer: Path, reviews: Path, tmp_path: Path) -> None:
    spec = writer_spec(writer, reviews, PromptTuning(virtual_tokens=4), variants=("fp32", "int8"))
    report = work(tmp_path / "run", spec)
    build = tmp_path / "run" / "variants" / "fp32"
    assert (build / "chat_template.jinja").read_text().startswith("".join(token_name(i) for i in range(4)))
    config = json.loads((build / "config.json").read_text())
    assert config["virtual_token_ids"] == list(range(config["vocab_size"] - 4, config["vocab_size"]))
    assert report.figures["trainable_parameters"] == 4 * config["hidden_size"]
    assert_built_as_trained(report)
    assert report.warnings == ()
    for variant in ("fp32", "int8"):
        manifest = json.loads((build.with_name(variant) / MANIFEST).read_text())
        assert manifest["same_answer_as_merged"] == report.figures[f"same_answer_as_merged_{variant}"]
    assert report.figures["final_loss"] < report.figures["first_loss"]


@pytest.mark.parametrize("method", [Lora(r=4, alpha=8, use_dora=True), Lora(r=4, alpha=8, use_rslora=True)])
def test_a_kind_of_lora_answers_in_its_build_as_it_was_trained(
    writer: Path, reviews: Path, tmp_path: Path, method: Lora
) -> None:
    report = work(tmp_path / "run", writer_spec(writer, reviews, method))
    assert_built_as_trained(report)
    assert report.figures["final_loss"] < report.figures["first_loss"]


@pytest.mark.parametrize(("method", "column"), [(Dpo(r=4), "chosen"), (Kto(r=4), "answer")])
def test_preferences_are_learnt_and_served(writer: Path, tmp_path: Path, method: Dpo | Kto, column: str) -> None:
    snapshot = write_preferences(tmp_path / "snapshot")
    task = GenerationTask("Write a headline.\n\n{text}", column, 96, 12)
    report = work(tmp_path / "run", writer_spec(writer, snapshot, method, task=task))
    assert report.figures["preference_examples"] == 8
    assert report.figures["preference_accuracy"] > 0.6
    assert report.figures["final_loss"] < report.figures["first_loss"]
    assert_built_as_trained(report)


def test_a_build_of_the_same_weights_that_answers_differently_is_reported() -> None:
    (warning,) = parity_warnings({"fp32": 0.75, "int8": 0.5})
    assert "25.0%" in warning
    assert parity_warnings({"fp32": 1.0, "int8": 0.5}) == ()
