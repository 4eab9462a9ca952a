"""What no recipe and no text can do: freeze, fill the memory, outgrow a record. And which fields operators work on."""

from __future__ import annotations

import re
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cleaning.app.recipe_cache import RecipeCache
from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.domain.record import Cleaned
from services.cleaning.engine import limits
from services.cleaning.engine.compiler import CompiledRecipe, compile_recipe
from services.cleaning.engine.patterns import LinearPattern, PatternError, ReplacementError
from services.cleaning.engine.registry import default_registry
from tests.examples import examples
from tests.recipes import parse_operators

REGISTRY = default_registry()


def recipe(*items: object) -> CompiledRecipe:
    return compile_recipe(REGISTRY, parse_operators(list(items)))


def cleaned(text: str, *items: object, **attributes: str) -> Cleaned:
    return recipe(*items).clean(text, attributes)


def rejected(text: str, *items: object, **attributes: str) -> tuple[str, str]:
    rejection = cleaned(text, *items, **attributes).rejection
    assert rejection is not None
    return rejection.reason, rejection.detail


# Each takes Python's `re` longer than a life on its text.
@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a+)+$", "a" * 200_000 + "!"),
        ("(a|aa)+$", "a" * 200_000 + "!"),
        (r"(\w+\s?)+:$", "word " * 50_000),
        (r"^(([a-z])+.)+[A-Z]([a-z])+$", "a" * 200_000),
        ("(x+x+)+y", "x" * 200_000),
    ],
)
def test_a_hostile_pattern_ends(pattern: str, text: str) -> None:
    assert cleaned(text, {"regex_replace": {"pattern": pattern, "replacement": ""}}).text == text


def test_a_pattern_that_looks_to_the_end_for_every_match_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CPU_S", 0.2)
    found = rejected("a" * 500_000, {"regex_replace": {"pattern": "a*b|a", "replacement": "c"}})
    assert found == ("too_costly", "operator=regex_replace field=text cpu_s > 0.2")


def test_replacing_cannot_grow_a_text_without_end() -> None:
    tenfold = {"regex_replace": {"pattern": "a", "replacement": "a" * 1000}}
    tracemalloc.start()
    reason, detail = rejected("a" * 4000, tenfold, tenfold, tenfold)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reason == "too_large"
    assert detail.startswith("operator=regex_replace field=text bytes>=")
    assert peak < 64_000_000
    terms = {"term_map": {"terms": {"a": "b" * 1000}}}
    assert rejected("a" * 4000, terms)[1].startswith("operator=term_map field=text bytes>=")


def test_every_operator_is_bounded_whatever_it_does() -> None:
    # U+FDFA is one character of three bytes, and eighteen of 33 bytes in NFKC.
    reason, detail = rejected("\ufdfa" * 100_000, {"fix_unicode": {"normalization": "NFKC"}})
    assert (reason, detail) == ("too_large", "operator=fix_unicode field=text bytes=3300000 > max_bytes=524288")


def test_a_record_of_many_large_attributes_is_refused() -> None:
    attributes = {f"a{number}": "x" * 400_000 for number in range(6)}
    assert rejected("text", "normalize_whitespace", **attributes) == (
        "too_large",
        "operator=input record_bytes=2400004 > max_bytes=2097152",
    )
    assert rejected("text", "normalize_whitespace", a="x" * 600_000)[1].startswith("operator=input field=a bytes=")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"a(?=b)", "look-ahead"),
        (r"a(?!b)", "look-ahead"),
        (r"(?<=a)b", "look-behind"),
        (r"(?<!a)b", "look-behind"),
        (r"(a)\1", "back-references"),
        (r"(?P<x>a)(?P=x)", "back-references"),
        (r"(?>a)", "atomic groups"),
        (r"(a)?(?(1)b|c)", "conditions"),
        (r"a\Z", r"\z"),
        (r"\u4e00", r"\x{4e00}"),
        (r"\p{L}{1,9}", "instructions"),
        (r"(?:a{900}){900}", "repetition size"),
        (r"\C", "part of a character"),
    ],
)
def test_what_re2_does_not_take_is_named(pattern: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe({"regex_replace": {"pattern": pattern}})
    (violation,) = caught.value.violations
    assert violation.field == "operators[0].params.pattern"
    assert said in violation.description


@pytest.mark.parametrize("replacement", [r"\2", r"\g<name>", r"\g<1", r"\q", "end\\"])
def test_a_replacement_is_checked_when_the_recipe_is_read(replacement: str) -> None:
    with pytest.raises(ReplacementError):
        LinearPattern("(a)", replacement)


@examples(300)
@given(
    st.sampled_from(["", "x*", "é?", r"\b", "中|b", "(a)(b)?", "(?P<n>[a-c]+)", r"[^\s]+", "(?i)A", "$", "^", "a|ab"]),
    st.sampled_from(["", "-", r"<\g<0>>", r"\\\n", "中"]),
    st.text(st.sampled_from("aAbéx 中\n😀"), max_size=12),
)
def test_it_replaces_as_python_does(pattern: str, replacement: str, text: str) -> None:
    text = text.rstrip("\n")  # `$` also matches before a last line end in Python
    assert LinearPattern(pattern, replacement).replace(text) == re.sub(pattern, replacement, text, flags=re.ASCII)


def test_patterns_and_terms_of_a_recipe_are_bounded() -> None:
    many = [OperatorSpec("regex_replace", {"pattern": "a"})] * (limits.MAX_PATTERNS + 1)
    with pytest.raises(RecipeError, match="at most 64 regex_replace"):
        compile_recipe(REGISTRY, many)
    with pytest.raises(RecipeError, match="at most 128"):
        compile_recipe(REGISTRY, [OperatorSpec("fix_unicode")] * 129)
    terms = OperatorSpec("term_map", {"terms": {f"t{number}": "" for number in range(60_000)}})
    with pytest.raises(RecipeError, match="100000 terms together"):
        compile_recipe(REGISTRY, [terms, terms])
    with pytest.raises(PatternError):
        LinearPattern("[", "")


def test_compiled_recipes_are_forgotten_when_they_take_much_memory() -> None:
    cache = RecipeCache(REGISTRY)
    for number in range(12):
        specs = [OperatorSpec("regex_replace", {"pattern": f"{number}.{place}"}) for place in range(60)]
        cache.of_operators(specs)
    kept = cache._compiled.values()
    assert 1 <= len(kept) < 6
    assert sum(made.memory_bytes for made in kept) <= 256 * 1024 * 1024


def reference_terms(text: str, terms: dict[str, str], whole: bool) -> str:
    choice = "|".join(re.escape(term) for term in sorted(terms, key=lambda term: (-len(term), term)))
    pattern = rf"(?<!\w)(?:{choice})(?!\w)" if whole else choice
    return re.sub(pattern, lambda match: terms[match.group()], text)


@examples(300)
@given(
    st.dictionaries(
        st.text(st.sampled_from("ab中_ "), min_size=1, max_size=4), st.sampled_from(["", "X", "yy"]), min_size=1
    ),
    st.text(st.sampled_from("ab中_ -"), max_size=24),
    st.booleans(),
)
def test_many_terms_are_found_as_few_are(terms: dict[str, str], text: str, whole: bool) -> None:
    filler = {f"\u3400{number}": "" for number in range(100)}
    few = cleaned(f"{text}.", {"term_map": {"terms": terms, "whole_words": whole}})
    many = cleaned(f"{text}.", {"term_map": {"terms": terms | filler, "whole_words": whole}})
    assert few.text == many.text == reference_terms(f"{text}.", terms, whole)


def test_a_hundred_thousand_terms_cost_no_more_than_a_look_for_each_place() -> None:
    terms = {f"名{number:06}": "x" for number in range(100_000)}
    assert cleaned("名000123和名9 " * 5000, {"term_map": {"terms": terms}}).text == ("x和名9 " * 5000)


def test_terms_that_differ_in_case_only_contradict_each_other() -> None:
    with pytest.raises(RecipeError, match="gives two replacements for 'mi'"):
        recipe({"term_map": {"terms": {"MI": "a", "mi": "b"}, "ignore_case": True}})
    assert cleaned("İ MI Mİ", {"term_map": {"terms": {"mi": "x"}, "ignore_case": True}}).text == "İ x Mİ"


def test_masking_covers_text_and_every_attribute() -> None:
    found = cleaned(
        "Call 212-555-0134 now\nThe body writes to a.b@example.org.",
        {"first_line_to_field": {"field": "headline"}},
        "mask_pii",
        reply_to="c@example.org",
        label="news",
    )
    assert found.text == "The body writes to [EMAIL]."
    assert found.attributes == {"headline": "Call [PHONE] now", "reply_to": "[EMAIL]", "label": "news"}


MAPS: list[tuple[str, dict[str, Any], str, str]] = [
    ("fix_unicode", {}, "itâ€™s", "it's"),
    ("normalize_whitespace", {}, " a  b ", "a b"),
    ("strip_html", {}, "<b>a</b>", "a"),
    ("convert_script", {}, "頭髮", "头发"),
    ("regex_replace", {"pattern": "a", "replacement": "b"}, "a", "b"),
    ("term_map", {"terms": {"a": "b"}}, "a", "b"),
    ("mask_pii", {}, "x@example.org", "[EMAIL]"),
]


@pytest.mark.parametrize(("name", "params", "before", "after"), MAPS)
def test_every_map_works_on_the_fields_that_it_is_given(
    name: str, params: dict[str, Any], before: str, after: str
) -> None:
    def run(fields: list[str]) -> tuple[str, dict[str, str]]:
        found = cleaned(before, {name: {**params, "fields": fields}}, one=before, two=before)
        return found.text, dict(found.attributes)

    assert run(["text"]) == (after, {"one": before, "two": before})
    assert run(["one"]) == (before, {"one": after, "two": before})
    assert run(["text", "two", "absent"]) == (after, {"one": before, "two": after})
    assert run(["*"]) == (after, {"one": after, "two": after})


def test_a_field_that_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe({"fix_unicode": {"fields": ["Head Line"]}})
    assert caught.value.violations[0].field == "operators[0].params.fields"


def test_a_refused_attribute_names_its_field() -> None:
    tenfold = {"regex_replace": {"pattern": "a", "replacement": "a" * 1000, "fields": ["headline"]}}
    found = recipe(tenfold).clean_batch([("text", {"headline": "a" * 4000}), ("text", {"headline": "b"})])
    assert found[0].rejection is not None
    assert found[0].rejection.detail.startswith("operator=regex_replace field=headline bytes>=")
    assert found[1] == Cleaned("text", {"headline": "b"})
