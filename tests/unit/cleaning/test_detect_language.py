"""`detect_language`: a hint where the language is clear, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.engine.compiler import CompiledRecipe, compile_recipe
from services.cleaning.engine.registry import default_registry

ENGLISH = "The room was clean and the staff were very friendly."
CHINESE = "房间很干净，服务员也非常热情，下次出差还会选择这家酒店入住。"
GERMAN = "Das Zimmer war sauber, und alle waren sehr freundlich zu uns."


def recipe(**params: Any) -> CompiledRecipe:
    """A recipe of this operator."""
    return compile_recipe(default_registry(), [OperatorSpec("detect_language", params)])


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (CHINESE, "zh"), (GERMAN, "de")])
def test_a_clear_language_is_written(text: str, language: str) -> None:
    cleaned = recipe().clean(text, {"label": "x"})
    assert (cleaned.text, dict(cleaned.attributes)) == (text, {"label": "x", "language": language})


def test_what_the_sender_says_stays() -> None:
    assert recipe().clean(ENGLISH, {"language": "en-GB"}).attributes["language"] == "en-GB"


@pytest.mark.parametrize("text", ["ok", "12345 67890 12345 67890", "a"])
def test_what_is_too_short_or_unclear_gets_none(text: str) -> None:
    cleaned = recipe(min_confidence=0.9).clean(text, {})
    assert (cleaned.rejection, dict(cleaned.attributes)) == (None, {})


def test_the_field_has_a_name_of_choice_and_is_a_column() -> None:
    compiled = recipe(field="spoken")
    assert tuple(compiled.columns) == ("spoken",)
    verdicts = compiled.clean_batch([(ENGLISH, {}), ("short", {}), (CHINESE, {})])
    assert [dict(verdict.attributes) for verdict in verdicts] == [{"spoken": "en"}, {}, {"spoken": "zh"}]


def test_it_is_explained_as_a_change_of_the_attribute() -> None:
    (effect,) = recipe().explain(ENGLISH, {}).effects
    assert effect.operator == "detect_language"
    assert [change.field for change in effect.changes] == ["language"]


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"operators\[0\].params.field"):
        recipe(field="Not a name")
