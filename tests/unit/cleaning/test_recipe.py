"""Recipes: what is accepted, what is refused and how the refusal helps, what the digest stands for."""

from __future__ import annotations

from typing import Any

import pytest

from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.registry import Registry, default_registry
from tests.recipes import parse_operators

REGISTRY = default_registry()
MINIMAL_PARAMS: dict[str, dict[str, Any]] = {
    "language_filter": {"languages": ["en"]},
    "symbol_filter": {"max_symbols": 0.9},
    "word_filter": {"words": ["casino"], "max_count": 0},
    "regex_replace": {"pattern": "a"},
    "term_map": {"terms": {"a": "b"}},
    "script_filter": {"scripts": ["latin"]},
    "first_line_to_field": {"field": "headline"},
    "drop_if_missing_field": {"fields": ["headline"]},
    "length_filter": {"min_chars": 1},
}


def refusal(*items: object) -> tuple[str, str]:
    with pytest.raises(RecipeError) as caught:
        compile_recipe(REGISTRY, parse_operators(list(items)))
    (violation,) = caught.value.violations
    return violation.field, violation.description


@pytest.mark.parametrize("name", REGISTRY.names)
def test_every_registered_operator_builds_and_cleans(name: str) -> None:
    recipe = compile_recipe(REGISTRY, [OperatorSpec(name, MINIMAL_PARAMS.get(name, {}))])
    assert len(recipe.clean_batch([("Some words\nand more of them", {"label": "x"})])) == 1


def test_operators_are_imported_when_first_asked_for() -> None:
    registry = Registry()
    registry.register("broken", "services.cleaning.engine.operators.not_there:Nothing")
    with pytest.raises(RecipeError, match="cannot be loaded"):
        registry.build(OperatorSpec("broken"), 0)


def test_two_operators_of_one_name_are_refused() -> None:
    registry = Registry()
    registry.register("same", "one:One")
    with pytest.raises(ValueError, match=r"same.*one:One.*two:Two"):
        registry.register("same", "two:Two")


def test_an_unknown_operator_is_named_with_its_place_and_what_was_meant() -> None:
    field, description = refusal("fix_unicode", "normalise_whitespace")
    assert field == "operators[1].name"
    assert "did you mean 'normalize_whitespace'" in description


def test_an_unknown_parameter_is_named_with_what_was_meant() -> None:
    field, description = refusal({"length_filter": {"min_char": 3}})
    assert field == "operators[0].params.min_char"
    assert "length_filter" in description
    assert "did you mean 'min_chars'" in description


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"length_filter": {"min_chars": "many"}}, "operators[0].params.min_chars"),
        ({"length_filter": {"min_chars": 9, "max_chars": 3}}, "operators[0].params.min_chars"),
        ({"length_filter": {}}, "operators[0].params.min_chars"),
        ({"alnum_filter": {"min_ratio": 1.5}}, "operators[0].params.min_ratio"),
        ({"regex_replace": {"pattern": "("}}, "operators[0].params.pattern"),
        ({"regex_replace": {"pattern": "(a)", "replacement": r"\2"}}, "operators[0].params.replacement"),
        ({"term_map": {"terms": {"": "x"}}}, "operators[0].params.terms"),
        ({"script_filter": {"scripts": ["elvish"]}}, "operators[0].params.scripts"),
        ({"mask_pii": {"tokens": {"name": "X"}}}, "operators[0].params.tokens"),
        ({"mask_pii": {"kinds": ["mail"]}}, "operators[0].params.kinds.0"),
        ({"first_line_to_field": {}}, "operators[0].params.field"),
    ],
)
def test_a_wrong_value_is_refused_where_it_stands(item: object, field: str) -> None:
    assert refusal(item)[0] == field


def test_an_operator_on_records_cannot_stand_behind_one_on_the_set() -> None:
    field, description = refusal("exact_dedup", "fix_unicode")
    assert field == "operators[1].name"
    assert "before exact_dedup" in description


def test_deduplication_cannot_stand_before_conflicting_labels() -> None:
    assert refusal("near_dedup", "conflicting_labels")[0] == "operators[1].name"


def test_the_digest_stands_for_what_a_recipe_does() -> None:
    def digest(*items: object, required: tuple[str, ...] = ()) -> str:
        return compile_recipe(REGISTRY, parse_operators(list(items)), required).digest

    plain = digest({"length_filter": {"min_chars": 40}}, "exact_dedup")
    assert plain == digest({"length_filter": {"min_chars": 40.0, "max_chars": None}}, {"exact_dedup": {}})
    assert plain != digest({"length_filter": {"min_chars": 41}}, "exact_dedup")
    assert plain != digest("exact_dedup")
    assert plain != digest({"length_filter": {"min_chars": 40}}, "exact_dedup", required=("label",))
    assert digest("fix_unicode", "strip_html") != digest("strip_html", "fix_unicode")


def test_columns_are_what_is_required_and_what_operators_make() -> None:
    items = [{"first_line_to_field": {"field": "headline"}}, "conflicting_labels"]
    recipe = compile_recipe(REGISTRY, parse_operators(items), ["topic"])
    assert list(recipe.columns) == ["topic", "headline", "label"]
