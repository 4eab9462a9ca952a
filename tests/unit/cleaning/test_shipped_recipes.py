"""The recipes of shipped pipelines, and the columns that they make of others for trainings to learn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict

from gateway.cli.pipeline_file import load_dataset
from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.engine.compiler import CompiledRecipe, compile_recipe
from services.cleaning.engine.registry import default_registry
from tests.shipped import PIPELINES, ROOT


def compiled(path: Path) -> CompiledRecipe:
    dataset = load_dataset(path).spec.dataset
    operators = [OperatorSpec(each.name, MessageToDict(each.params)) for each in dataset.operators]
    return compile_recipe(default_registry(), operators, list(dataset.required_attributes))


def cleaned(pipeline: str, text: str, attributes: Mapping[str, str]) -> Mapping[str, str]:
    """The attributes of a record after the recipe of a pipeline."""
    found = compiled(ROOT / "pipelines" / f"{pipeline}.yaml").clean(text, attributes)
    assert found.rejection is None
    return found.attributes


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_recipe_is_one(path: Path) -> None:
    assert compiled(path).clean("text", {}).rejection is not None, "its required attributes are not there"


@pytest.mark.parametrize(
    ("spans", "labels"),
    [
        ("[]", "[]"),
        (
            '[{"start": 0, "end": 4, "label": "ORG"}, {"start": 12, "end": 15, "label": "PER"}]',
            '["ORG", "PER"]',
        ),
    ],
)
def test_spans_become_the_labels_of_a_text(spans: str, labels: str) -> None:
    assert cleaned("mentions", "中共中央总书记、国家主席江泽民", {"spans": spans})["spans"] == labels


@pytest.mark.parametrize(
    ("headline", "rating"),
    [("Ad sales boost Time Warner", "true"), ("Ad sales boost Time Warner profit", "false"), ("False", "true")],
)
def test_an_article_becomes_a_preference_and_a_rating(headline: str, rating: str) -> None:
    first = "Quarterly profits at US media giant TimeWarner jumped 76% to $1.13bn. " * 3
    found = cleaned("preferences", f"{headline}\n\n{first}\n\nIts advert sales rose.", {})
    assert found == {"headline": headline, "rejected": first.strip(), "rating": rating}
