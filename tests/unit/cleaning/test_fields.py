"""`fields`: what operators on single records look at, one mechanism for all of them."""

from __future__ import annotations

from typing import Any

import pytest

from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.domain.record import Rejection
from services.cleaning.engine.compiler import CompiledRecipe, compile_recipe
from services.cleaning.engine.operator import Filter, RecordOperator, TextMap
from services.cleaning.engine.registry import default_registry
from tests.recipes import parse_operators

REGISTRY = default_registry()
# Make or ask for attributes by name; everything else on single records works on the text as well.
ON_ATTRIBUTES = {"detect_language", "first_line_to_field", "drop_if_missing_field"}
LETTERS = "Several words of plain English that say nothing twice."
# What each filter drops, and keeps, and why.
FILTERS: list[tuple[dict[str, Any], str, str]] = [
    ({"length_filter": {"min_chars": 5}}, "tiny", "too_short"),
    ({"length_filter": {"max_words": 20}}, "word " * 30, "too_long"),
    ({"alnum_filter": {}}, "?!?!?!?!", "low_alnum"),
    ({"repetition_filter": {}}, "buy now! " * 100, "repetitive"),
    ({"script_filter": {"scripts": ["latin"]}}, "都是汉字", "wrong_script"),
    ({"symbol_filter": {"max_digits": 0.5}}, "1234567890", "many_digits"),
    ({"word_filter": {"words": ["casino"], "max_count": 0}}, "The casino!", "listed_words"),
    ({"language_filter": {"languages": ["en"]}}, "这是一个普通的中文句子，没有任何别的意思在里面。", "wrong_language"),
]


def recipe(*items: object) -> CompiledRecipe:
    return compile_recipe(REGISTRY, parse_operators(list(items)))


def with_fields(item: dict[str, Any], *fields: str) -> dict[str, Any]:
    ((name, params),) = item.items()
    return {name: {**params, "fields": list(fields)}}


def test_every_operator_on_single_records_takes_fields() -> None:
    kinds = {name: REGISTRY.operator_type(name) for name in REGISTRY.names}
    on_records = {name for name, kind in kinds.items() if issubclass(kind, RecordOperator)}
    by_fields = {name for name, kind in kinds.items() if issubclass(kind, TextMap | Filter)}
    assert on_records - by_fields == ON_ATTRIBUTES
    defaults = {
        name: kinds[name].params_type.model_fields["fields"].get_default(call_default_factory=True)
        for name in by_fields
    }
    assert {name for name, fields in defaults.items() if fields == ["*"]} == {"mask_pii"}
    assert all(fields == ["text"] for name, fields in defaults.items() if name != "mask_pii")


@pytest.mark.parametrize(("item", "bad", "reason"), FILTERS)
def test_a_filter_judges_the_text_alone_unless_configured_otherwise(
    item: dict[str, Any], bad: str, reason: str
) -> None:
    plain = recipe(item)
    assert plain.clean(LETTERS, {"headline": bad}).rejection is None
    dropped = plain.clean(bad, {"headline": LETTERS}).rejection
    assert dropped is not None
    assert dropped.reason == reason
    assert "field=" not in dropped.detail


@pytest.mark.parametrize(("item", "bad", "reason"), FILTERS)
def test_a_filter_judges_named_attributes_and_reports_which_one(item: dict[str, Any], bad: str, reason: str) -> None:
    plain = recipe(item).clean(bad, {}).rejection
    assert plain is not None
    named = recipe(with_fields(item, "headline"))
    assert named.clean(bad, {"headline": LETTERS, "other": bad}).rejection is None
    # What a record does not have is not judged; drop_if_missing_field does that.
    assert named.clean(LETTERS, {}).rejection is None
    dropped = named.clean(LETTERS, {"headline": bad}).rejection
    assert dropped == Rejection(reason, f"field=headline {plain.detail}")
    assert list(named.columns) == ["headline"]
    everything = recipe(with_fields(item, "*"))
    assert everything.clean(LETTERS, {"a": LETTERS, "b": bad}).rejection == Rejection(reason, f"field=b {plain.detail}")
    assert everything.clean(bad, {"a": LETTERS}).rejection == plain


def test_fields_of_a_batch_are_those_of_its_records_alone() -> None:
    made = recipe(
        {"fix_unicode": {"fields": ["*"]}},
        {"length_filter": {"min_chars": 3, "fields": ["text", "headline"]}},
        "mask_pii",
        {"alnum_filter": {"fields": ["*"], "min_ratio": 0.4}},
    )
    texts = ["", "a", "wei√ü", "call 13812345678", "😀😀😀 !!!", "１２３ ａｂｃ", LETTERS, LETTERS]
    records = [(text, {"headline": texts[-place], "label": "x"}) for place, text in enumerate(texts)]
    assert made.clean_batch(records) == [made.clean(*record) for record in records]


@pytest.mark.parametrize("item", [*(item for item, _, _ in FILTERS), {"mask_pii": {}}, {"strip_html": {}}])
@pytest.mark.parametrize("fields", [["Headline"], ["head line"], [""], ["text", "-"], []])
def test_what_cannot_be_a_field_is_refused_where_it_stands(item: dict[str, Any], fields: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(with_fields(item, *fields))
    (violation,) = caught.value.violations
    assert violation.field == "operators[0].params.fields"


def test_missing_fields_are_asked_for_by_valid_names() -> None:
    with pytest.raises(RecipeError) as caught:
        compile_recipe(REGISTRY, [OperatorSpec("drop_if_missing_field", {"fields": ["ok", "*"]})])
    assert caught.value.violations[0].field == "operators[0].params.fields.1"
