"""Filters: their figures against plain definitions, their reasons, and independence of the neighbours in a batch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.domain.record import Rejection
from services.cleaning.engine.characters import count_words
from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.operators.repetition_filter import periods, repetition_ratio
from services.cleaning.engine.registry import default_registry
from tests.examples import examples
from tests.recipes import parse_operators

REGISTRY = default_registry()


def verdict(name: str, text: str, **params: Any) -> Rejection | None:
    return compile_recipe(REGISTRY, [OperatorSpec(name, params)]).clean(text, {}).rejection


def test_length_counts_characters_and_words() -> None:
    assert verdict("length_filter", "x" * 12, min_chars=40) == Rejection("too_short", "chars=12 < min_chars=40")
    assert verdict("length_filter", "x" * 41, max_chars=40) == Rejection("too_long", "chars=41 > max_chars=40")
    assert verdict("length_filter", "x" * 40, min_chars=40, max_chars=40) is None
    assert verdict("length_filter", "a b", min_words=3) == Rejection("too_short", "words=2 < min_words=3")


def test_every_chinese_character_is_a_word() -> None:
    assert count_words("我爱NLP技术，really!") == 6
    assert count_words("two words") == 2
    assert count_words("über Straße") == 2


def test_blank_text_and_missing_fields_are_dropped() -> None:
    recipe = compile_recipe(REGISTRY, parse_operators(["normalize_whitespace"]), ["label"])
    first, second, third = recipe.clean_batch(
        [("  ", {"label": "x"}), ("text", {"label": " "}), ("text", {"label": "x"})]
    )
    assert first.rejection == Rejection("empty_text")
    assert second.rejection == Rejection("missing_field", "label")
    assert third.rejection is None


def test_script_share_counts_letters_only() -> None:
    assert verdict("script_filter", "这是 a 123!!!", scripts=["han"]) is None
    assert verdict("script_filter", "mostly latin 中", scripts=["han"]) == Rejection(
        "wrong_script", "script_ratio=0.083 < min_ratio=0.5"
    )
    assert verdict("script_filter", "123 !", scripts=["han"]) == Rejection("wrong_script", "letters=0")


texts = st.text(st.sampled_from("ab1 中文。!\n😀"), max_size=60)


@examples(500)
@given(texts, st.floats(0, 1))
def test_alnum_ratio_is_the_share_of_letters_and_digits(text: str, limit: float) -> None:
    ratio = sum(char.isalnum() for char in text) / max(len(text), 1)
    found = verdict("alnum_filter", text, min_ratio=limit)
    assert (found is not None and found.reason == "low_alnum") == (ratio < limit)


@examples(1000)
@given(st.lists(st.one_of(texts, st.text(max_size=40)), max_size=8), st.integers(2, 12), st.floats(0, 1))
def test_counting_by_hash_never_changes_a_verdict(batch: list[str], ngram: int, limit: float) -> None:
    spec = OperatorSpec("repetition_filter", {"ngram": ngram, "max_ratio": limit, "words": False})
    verdicts = compile_recipe(REGISTRY, [spec]).clean_batch((text, {}) for text in batch)
    for text, found in zip(batch, verdicts, strict=True):
        repetitive = found.rejection is not None and found.rejection.reason == "repetitive"
        assert repetitive == (repetition_ratio(text, ngram) > limit or periods(text) > 5)


def test_repetition_is_the_share_of_the_commonest_repeated_pieces() -> None:
    assert repetition_ratio("abcdefghijklmnop", 3) == 0
    assert repetition_ratio("ab", 3) == 0
    # aaa×8 is one distinct piece: all of the text.
    assert repetition_ratio("a" * 10, 3) == 1
    # ab ba ab ba ab: two distinct pieces, the sqrt of which is one: the commonest, 3 of 5.
    assert repetition_ratio("ababab", 2) == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("buy now! " * 1000, "top_2gram="),
        ("好评 " * 200, "top_2gram="),
        (
            "\n".join(["The same line again."] * 6 + [f"Another line, number {n} of these." for n in range(9)]),
            "duplicate_lines=",
        ),
        (
            " ".join(["a b c d e f g h i j k l"] + [f"w{n}" for n in range(60)] + ["a b c d e f g h i j k l"] * 2),
            "duplicate_",
        ),
        ("".join(f"第{number}次快来买吧！" for number in range(300)), "top_2gram="),
        (" ".join(f"go go {number}" for number in range(200)), "top_2gram="),
        ("buy now! " * 24, "periods=24"),
        ("好评！" * 30, "periods=30"),
        ("哈" * 12, "periods=12"),
    ],
)
def test_repeated_words_lines_and_runs_are_dropped(text: str, figure: str) -> None:
    found = verdict("repetition_filter", text)
    assert found is not None
    assert found.reason == "repetitive"
    assert found.detail.startswith((figure, "periods=", "repetition_ratio=", "duplicate_line_chars="))


def test_writing_that_repeats_no_more_than_writing_does_stays() -> None:
    words = [f"word{number % 97}x{number % 31}" for number in range(600)]
    assert verdict("repetition_filter", " ".join(words)) is None
    assert verdict("repetition_filter", "再来一次！再来一次！") is None
    assert verdict("repetition_filter", "哈哈哈哈，好评！好评！好评！好评！") is None
    assert verdict("repetition_filter", "8888888") is None


RECORDS = st.lists(
    st.tuples(
        st.text(st.sampled_from("ab <b>&amp;\n 中文國　，！@.138123456789£“x"), max_size=60), st.just({"label": "x"})
    ),
    max_size=12,
)
FULL = compile_recipe(
    REGISTRY,
    parse_operators(
        [
            "fix_unicode",
            "strip_html",
            "convert_script",
            "mask_pii",
            "normalize_whitespace",
            {"first_line_to_field": {"field": "head"}},
            {"length_filter": {"min_chars": 3, "max_words": 30}},
            "alnum_filter",
            {"repetition_filter": {"ngram": 3}},
        ]
    ),
)


@examples(300)
@given(RECORDS)
def test_a_record_is_judged_alike_alone_and_among_others(records: list[tuple[str, dict[str, str]]]) -> None:
    assert FULL.clean_batch(records) == [FULL.clean(text, attributes) for text, attributes in records]


def test_a_large_batch_is_judged_in_order() -> None:
    records = [(f"record number {number} " * (number % 7 + 1), {"n": str(number)}) for number in range(5000)]
    recipe = compile_recipe(REGISTRY, parse_operators([{"length_filter": {"min_chars": 40}}]))
    for (text, attributes), result in zip(records, recipe.clean_batch(records), strict=True):
        assert result.attributes == attributes
        assert (result.rejection is None) == (len(text) >= 40)


def test_a_defect_on_one_record_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = compile_recipe(REGISTRY, parse_operators(["normalize_whitespace"]))
    operator = recipe.record_operators[0]
    good = operator.map  # type: ignore[attr-defined]  # of the concrete operator

    def fragile(text: str) -> str:
        if "boom" in text:
            raise ZeroDivisionError
        return str(good(text))

    monkeypatch.setattr(operator, "map", fragile)
    first, second = recipe.clean_batch([("  fine ", {}), ("boom", {})])
    assert first.text == "fine"
    assert second.rejection == Rejection("operator_failed", "error=ZeroDivisionError")


def test_what_it_was_given_is_left_alone() -> None:
    attributes = {"label": "x"}
    FULL.clean("head\nbody of the text", attributes)
    assert attributes == {"label": "x"}
