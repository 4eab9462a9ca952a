"""What else a producer says: kept under stated names, or noted."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.domain.record import (
    MAX_ATTRIBUTE_BYTES,
    MAX_ATTRIBUTES,
    RawRecord,
    check_record,
    is_attribute_name,
)
from services.ingest.engine.attributes import NOTES_ATTRIBUTE, Attributes, attribute_name
from services.ingest.engine.file_format import ReadFile
from services.ingest.engine.formats.json_lines import JsonLines

FILE = ReadFile("a.jsonl", "", ())


def kept(members: dict[str, Any]) -> dict[str, str]:
    attributes = Attributes()
    for name, value in members.items():
        attributes.add(name, value)
    return attributes.result()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("label", "label"),
        ("a_", "a_"),
        ("userName", "user_name"),
        ("HTTPStatus", "http_status"),
        ("orderID", "order_id"),
        ("user.homeTown", "user_home_town"),
        ("x-request-id", "x_request_id"),
        ("2fa", "x_2fa"),
        ("_private", "private"),
        ("Label", "label"),
    ],
)
def test_names_are_mapped_as_stated(path: str, name: str) -> None:
    assert attribute_name(path) == name


def test_nested_members_lists_numbers_and_nulls() -> None:
    members = {
        "user": {"homeTown": "X", "age": 7, "pets": ["a", 1], "none": None, "a": {"b": {"c": {"d": {"e": 1}}}}},
        "urgent": True,
        "price": 1.5,
        "empty": {},
    }
    assert kept(members) == {
        "user_home_town": "X",
        "user_age": "7",
        "user_pets": '["a",1]',
        "user_a_b_c_d": '{"e":1}',
        "urgent": "true",
        "price": "1.5",
        "empty": "{}",
    }


def test_names_that_meet_are_distinguished_and_the_exact_one_keeps_its_own() -> None:
    assert kept({"userName": "a", "user": {"name": "b"}, "user_name": "c"}) == {
        "user_name": "c",
        "user_name_2": "a",
        "user_name_3": "b",
    }


def test_what_cannot_be_kept_is_noted_and_nothing_else_is_lost() -> None:
    found = kept({"label": "x", "body": "é" * MAX_ATTRIBUTE_BYTES, "list": ["y" * MAX_ATTRIBUTE_BYTES], "标签": "好"})
    assert found["label"] == "x"
    assert len(found["body"].encode()) == MAX_ATTRIBUTE_BYTES
    assert "list" not in found
    (chinese,) = [name for name, value in found.items() if value == "好"]
    assert chinese.startswith("x_")
    notes = found[NOTES_ATTRIBUTE].split("\n")
    assert [note.split(":")[0] for note in notes] == ["body", "list", chinese]
    assert "标签" in notes[2]


def test_of_too_many_the_first_are_kept_and_the_rest_is_named() -> None:
    exact = kept({f"a{i}": "x" for i in range(MAX_ATTRIBUTES)})
    assert len(exact) == MAX_ATTRIBUTES
    assert NOTES_ATTRIBUTE not in exact
    found = kept({f"a{i}": "x" for i in range(MAX_ATTRIBUTES + 1)})
    assert len(found) == MAX_ATTRIBUTES
    assert list(found)[:2] == ["a0", "a1"]
    assert "a63, a64" in found[NOTES_ATTRIBUTE]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=60,
)
names = st.text(max_size=80) | st.text(string.ascii_letters + "._-", max_size=80)


@given(st.dictionaries(names, values, max_size=80))
def test_whatever_the_members_are_the_record_is_acceptable(members: dict[str, Any]) -> None:
    found = kept(members)
    check_record(RawRecord("s", "text", found))
    assert found == kept(members), "the same members give the same attributes"
    for name, value in members.items():
        if isinstance(value, str) and is_attribute_name(name) and len(members) < 20:
            assert value in found.values() or NOTES_ATTRIBUTE in found


@given(st.dictionaries(names, values, max_size=20))
def test_a_line_with_text_is_a_record_whatever_else_it_says(members: dict[str, Any]) -> None:
    line = json.dumps({**members, "text": "t"}).encode()
    assert JsonLines("/x").record("s", FILE, line).text == "t"


def test_every_member_of_a_line_is_kept_unless_the_recipe_names_some() -> None:
    line = b'{"text": "t", "id": 7, "label": "x", "user": {"homeTown": "y"}}'
    record = JsonLines("/x", id_field="id").record("s", FILE, line)
    assert (record.record_id, record.attributes) == ("7", {"label": "x", "user_home_town": "y"})
    record = JsonLines("/x", attribute_fields=("user.homeTown", "none.there")).record("s", FILE, line)
    assert record.attributes == {"user_home_town": "y"}


def test_side_fields_refuse_no_line() -> None:
    line = b'{"text": "t", "score": NaN, "big": 1e999, "a": 1, "a": 2, "half": "\\ud800", "id": "with space"}'
    record = JsonLines("/x", id_field="id").record("s", FILE, line)
    assert record.record_id.startswith("id_")
    notes = record.attributes[NOTES_ATTRIBUTE]
    assert [note.split(":")[0] for note in notes.split("\n")] == ["score", "big", "a", "half", "id"]
    assert {**record.attributes, NOTES_ATTRIBUTE: ""} == {
        "a": "2",
        "half": "\ufffd",
        "id": "with space",
        NOTES_ATTRIBUTE: "",
    }
