"""Grammars of JSON schemas: what is covered, and what is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.json_grammar import MAX_SCHEMA_BYTES, SchemaError, call_grammar, grammar_of


def _grammar(schema: Any) -> dict[str, str]:
    # A value may hold other ends of lines, such as U+0085.
    lines = grammar_of(json.dumps(schema)).removesuffix("\n").split("\n")
    return dict(line.split(" ::= ", 1) for line in lines)


def _reaches(rules: dict[str, str]) -> set[str]:
    """Names that rules use."""
    return {
        name
        for body in rules.values()
        for name in re.findall(r"[a-z]+[0-9]*", re.sub(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]', "", body))
    }


@given(st.integers(-3000, 3000), st.integers(0, 3000))
def test_bounds_of_integers_are_met_exactly(low: int, width: int) -> None:
    high = low + width
    rules = _grammar({"type": "integer", "minimum": low, "maximum": high})
    body = rules[rules["root"]]
    pattern = re.compile(body.replace(" ", "").replace('"', ""))
    for value in {low - 1, low, low + 1, (low + high) // 2, high - 1, high, high + 1, 0, -1, 9, 10, 99, 100, 999, 1000}:
        assert bool(pattern.fullmatch(str(value))) == (low <= value <= high), (value, body)


def test_exclusive_bounds_are_narrower_by_one() -> None:
    inclusive = _grammar({"type": "integer", "minimum": 1, "maximum": 6})
    assert _grammar({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 7}) == inclusive


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {}, "additionalProperties": False},
        {"type": "object", "properties": {"a": {"type": "string"}, 'ö"\\': {}}, "required": ["a"]},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": ["string", "null"]},
        {"enum": ["a", 1, None, {"b": [True]}, "line\nend", "\x7f"]},
        {"const": "x"},
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "null"}}},
        {"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]},
        {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": False},
        {
            "type": "array",
            "prefixItems": [{"type": "null"}],
            "items": {"type": "integer"},
            "minItems": 2,
            "maxItems": 4,
        },
        {"type": "array", "maxItems": 0},
        {"type": "string", "format": "date-time"},
        {"type": "string", "minLength": 2},
    ],
)
def test_each_rule_that_is_used_is_defined_once(schema: Any) -> None:
    rules = _grammar(schema)
    assert _reaches(rules) <= rules.keys()


@pytest.mark.parametrize(
    ("schema", "path", "words"),
    [
        ([], "the schema", "must be an object"),
        ({"type": "text"}, "/type", "must be one of object"),
        ({"type": []}, "/type", "at least one"),
        ({"title": "x", "description": "y"}, "the schema", "needs a `type`"),
        ({"type": "string", "pattern": "(a+)+$"}, "/pattern", "is not offered"),
        ({"not": {}}, "/not", "is not offered"),
        ({"type": "number", "minimum": 0.5}, "/minimum", "is not offered"),
        ({"type": "integer", "minimum": 0.5}, "/minimum", "whole number"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "the schema", "no whole number"),
        ({"type": "integer", "maximum": 10**15}, "/maximum", "digits"),
        ({"type": "string", "maxLength": -1}, "/maxLength", "from 0 on"),
        ({"type": "string", "maxLength": 10**9}, "/maxLength", "Leave it out"),
        ({"type": "string", "minLength": None}, "/minLength", "from 0 on"),
        ({"type": "array", "items": {}, "maxItems": None}, "/maxItems", "from 0 on"),
        ({"type": "array", "items": {"type": "string", "minLength": 257}}, "/items/minLength", "Leave it out"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "/maxLength", "below"),
        ({"type": "string", "format": "hostname"}, "/format", "must be one of date"),
        ({"type": "object", "properties": {"a": 1}}, "/properties/a", "must be an object"),
        ({"type": "object", "properties": {"a/b": {"type": 1}}}, "/properties/a~1b/type", "must be one of"),
        ({"type": "object", "required": ["a"]}, "/required", "'a'"),
        ({"type": "array", "items": {"$ref": "#/$defs/no"}}, "/items/$ref", "is not in this schema"),
        ({"$ref": "https://example.com/schema"}, "/$ref", "must point into this schema"),
        ({"$ref": "#"}, "the schema", "nothing but itself"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}},
            "/$defs/a",
            "nothing but itself",
        ),
        ({"allOf": [{"type": "null"}, {"type": "null"}]}, "/allOf", "write them as one"),
        ({"enum": []}, "/enum", "at least one value"),
    ],
)
def test_what_is_wrong_or_not_covered_is_refused_with_its_place(schema: Any, path: str, words: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(words)) as caught:
        grammar_of(json.dumps(schema))
    assert str(caught.value).startswith(f"{path}: ")


def test_a_schema_that_begins_with_itself_behind_a_container_is_refused() -> None:
    """The container is resolved first; inside it, the circle begins again without anything before it."""
    schema = {
        "$ref": "#/$defs/p",
        "$defs": {
            "p": {"anyOf": [{"type": "object", "properties": {"x": {"$ref": "#/$defs/q"}}}, {"$ref": "#/$defs/q"}]},
            "q": {"anyOf": [{"$ref": "#/$defs/p"}, {"type": "null"}]},
        },
    }
    with pytest.raises(SchemaError, match="nothing but itself"):
        grammar_of(json.dumps(schema))


def test_hostile_sizes_are_refused_at_once() -> None:
    deep: Any = {"type": "null"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    wide = {"type": "object", "properties": {str(at): {"type": "string", "maxLength": 2} for at in range(3000)}}
    for schema in (
        json.dumps(deep),
        json.dumps(wide)[: MAX_SCHEMA_BYTES - 1],
        "[" * 60_000,
        " " * MAX_SCHEMA_BYTES + "1",
    ):
        with pytest.raises(SchemaError):
            grammar_of(schema)
    for schema in ("no json", '{"type": NaN}', '"text"'):
        with pytest.raises(SchemaError):
            grammar_of(schema)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "properties", "items", "anyOf", "$ref", "required", "enum", "minItems", "const"]
                ),
                inner,
            )
        ),
        max_leaves=20,
    )
)
def test_anything_is_a_grammar_or_an_error_of_ours(schema: Any) -> None:
    try:
        rules = _grammar(schema)
    except SchemaError:
        return
    assert rules["root"]


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_each_function_has_references_of_its_own() -> None:
    a, b = ({"properties": {"x": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"const": name}}} for name in "ab")
    grammar = call_grammar(json.dumps([tool("a", a), tool("b", b), tool("none")]), "required")
    assert (grammar.count(r'"\"a\""'), grammar.count(r'"\"b\""')) == (1, 1)
    assert call_grammar(json.dumps([tool("a", a), tool("b", b)]), "a").count('b\\"') == 0
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())
    assert _reaches(rules) <= rules.keys()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"type": "string"}, "f.parameters: must be a schema of an object"),
        (
            {"properties": {"a": {"type": "string", "pattern": "x"}}},
            "f.parameters/properties/a/pattern: is not",
        ),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "f.parameters/properties/a/$ref: #/$defs/none is not in"),
    ],
)
def test_parameters_that_are_not_covered_are_refused_with_their_place(parameters: Any, words: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(words)):
        call_grammar(json.dumps([tool("f", parameters)]), "auto")
