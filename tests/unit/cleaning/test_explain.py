"""Explanations: which operator changed what, and which one dropped the record."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Batch
from services.cleaning.engine.compiler import CompiledRecipe, compile_recipe
from services.cleaning.engine.explain import MAX_EDIT_CHARS, MAX_EDITS, Edit, edits
from services.cleaning.engine.operators.alnum_filter import AlnumFilter
from services.cleaning.engine.registry import default_registry
from tests.recipes import parse_operators

REGISTRY = default_registry()


def recipe(*items: object, required: tuple[str, ...] = ()) -> CompiledRecipe:
    return compile_recipe(REGISTRY, parse_operators(list(items)), required)


def applied(before: str, found: list[Edit]) -> str:
    for edit in reversed(found):
        assert before[edit.start : edit.end] == edit.before
        before = before[: edit.start] + edit.after + before[edit.end :]
    return before


texts = st.text(st.sampled_from("ab 中文，\n"), max_size=40)


@settings(max_examples=500)
@given(texts, texts)
@example("aba", "a")
@example("", "x")
def test_edits_make_one_text_of_the_other(before: str, after: str) -> None:
    assert applied(before, list(edits(before, after))) == after


def test_edits_keep_words_whole() -> None:
    found = list(edits("write to bob@example.com or ann@example.com", "write to [EMAIL] or [EMAIL]"))
    assert [(edit.before, edit.after) for edit in found] == [
        ("bob@example.com", "[EMAIL]"),
        ("ann@example.com", "[EMAIL]"),
    ]


def test_every_operator_that_did_something_is_named_with_its_edits() -> None:
    made = recipe("fix_unicode", "normalize_whitespace", "strip_html", "mask_pii", {"length_filter": {"min_chars": 9}})
    found = made.explain("<p>Call  13812345678</p>", {"headline": "a@b.org", "label": "x"})
    assert found.cleaned == made.clean("<p>Call  13812345678</p>", {"headline": "a@b.org", "label": "x"})
    assert [(effect.position, effect.operator) for effect in found.effects] == [
        (1, "normalize_whitespace"),
        (2, "strip_html"),
        (3, "mask_pii"),
    ]
    text, headline = found.effects[2].changes
    assert (text.field, list(text.edits)) == ("text", [Edit(5, 16, "13812345678", "[PHONE]")])
    assert (headline.field, [edit.after for edit in headline.edits]) == ("headline", ["[EMAIL]"])


def test_a_new_attribute_is_reported() -> None:
    (effect,) = recipe({"first_line_to_field": {"field": "headline"}}).explain("Head\nBody", {}).effects
    text, headline = effect.changes
    assert (text.field, headline.field, headline.added) == ("text", "headline", True)


@pytest.mark.parametrize(
    ("items", "text", "operator", "reason"),
    [
        (["fix_unicode", {"length_filter": {"min_chars": 9}}, "mask_pii"], "tiny", "length_filter", "too_short"),
        ([{"regex_replace": {"pattern": "a", "replacement": "b" * 1000}}], "a" * 9000, "regex_replace", "too_large"),
        (["normalize_whitespace"], "   ", "", "empty_text"),
        (["mask_pii"], "x" * (512 * 1024 + 1), "", "too_large"),
    ],
)
def test_the_operator_that_drops_a_record_is_named(items: list[object], text: str, operator: str, reason: str) -> None:
    made = recipe(*items)
    found = made.explain(text, {})
    rejection = made.clean(text, {}).rejection
    assert rejection is not None
    assert (rejection.operator, rejection.reason) == (operator, reason)
    assert found.effects[-1].rejection == rejection
    assert found.effects[-1].operator == operator


def test_a_required_attribute_that_is_missing_is_a_drop_of_its_operator() -> None:
    rejection = recipe("fix_unicode", required=("label",)).clean("text", {}).rejection
    assert rejection is not None
    assert rejection.operator == "drop_if_missing_field"


def test_a_defect_is_reported_by_its_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: AlnumFilter, batch: Batch) -> None:
        raise RuntimeError("defect")

    monkeypatch.setattr(AlnumFilter, "apply", fail)
    made = recipe({"regex_replace": {"pattern": "x", "replacement": "y"}}, "alnum_filter", "mask_pii")
    for rejection in (made.clean("x", {}).rejection, made.explain("x", {}).cleaned.rejection):
        assert rejection == Rejection("operator_failed", "error=RuntimeError")
        assert rejection.operator == "alnum_filter"
    assert [effect.position for effect in made.explain("x", {}).effects] == [0, 1]


def test_an_explanation_is_bounded() -> None:
    (many,) = recipe({"regex_replace": {"pattern": "a", "replacement": "b"}}).explain("a c\n" * 1500, {}).effects
    assert len(many.changes[0].edits) == MAX_EDITS
    assert many.omitted_edits == 500
    (long,) = recipe({"regex_replace": {"pattern": "a", "replacement": "b"}}).explain("a" * MAX_EDIT_CHARS, {}).effects
    assert (list(long.changes[0].edits), long.omitted_edits) == ([], 1)
