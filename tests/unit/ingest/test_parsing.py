"""Bytes of sources to records."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.domain.record import RawRecord, RecordRefusedError
from services.ingest.engine.file_format import ReadFile
from services.ingest.engine.formats.json_lines import JsonLines
from services.ingest.engine.formats.text_folder import MAX_FILE_BYTES, TextFolder
from services.ingest.engine.members import MAX_LINE_BYTES

LINES = JsonLines("/x", attribute_fields=("label", "stars"))


def split_lines(chunks: Iterable[bytes]) -> list[tuple[int, bytes]]:
    return list(LINES.split(ReadFile("a.jsonl", "", chunks)))


def record_of_line(spec: JsonLines, line: bytes) -> RawRecord:
    return spec.record("s", ReadFile("a.jsonl", "", ()), line)


def record_of_file(spec: TextFolder, content: bytes) -> RawRecord:
    return spec.record("s", ReadFile("tech/1.txt", "tech", ()), content)


@given(st.lists(st.binary(max_size=8)), st.integers(1, 5))
def test_lines_do_not_depend_on_how_the_bytes_come(parts: list[bytes], size: int) -> None:
    whole = b"".join(parts)
    chunks = [whole[i : i + size] for i in range(0, len(whole), size)]
    expected = [
        (number, piece)
        for number, line in enumerate(whole.split(b"\n"), 1)
        if (piece := (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip())
    ]
    assert split_lines(chunks) == split_lines(parts) == split_lines([whole]) == expected


def test_a_line_without_end_takes_no_memory_without_end() -> None:
    chunk = b"x" * 1_000_000
    (first, line), (second, rest) = split_lines([*[chunk] * 20, b"\n{}"])
    assert (first, len(line)) == (1, MAX_LINE_BYTES + 1)
    assert (second, rest) == (2, b"{}")
    with pytest.raises(RecordRefusedError) as caught:
        record_of_line(LINES, line)
    assert caught.value.reason == "LINE_TOO_LONG"


def test_fields_become_text_attributes_and_identity() -> None:
    line = json.dumps({"text": "gut", "label": "positive", "stars": 5, "other": [1]}).encode()
    record = record_of_line(LINES, line)
    assert (record.source, record.text, record.attributes) == ("s", "gut", {"label": "positive", "stars": "5"})
    assert record.record_id.startswith("rec_")
    spec = JsonLines("/x", text_field="body", id_field="id", attribute_fields=("tags", "none"))
    record = record_of_line(spec, '{"body": "ü", "id": 7, "tags": ["a", "é"], "none": null}'.encode())
    assert (record.text, record.record_id, record.attributes) == ("ü", "7", {"tags": '["a","é"]'})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "INVALID_JSON"),
        (b"[" * 100_000, "INVALID_JSON"),
        (b'"text"', "NOT_AN_OBJECT"),
        (b'{"text": "a", "text": "b"}', "FIELD_TWICE"),
        (b'{"text": NaN}', "TEXT_NOT_A_STRING"),
        (b"NaN", "NOT_AN_OBJECT"),
        (b'{"n": ' + b"9" * 5000 + b"}", "MISSING_TEXT"),
        (b"\xff\xfe{\x00}\x00", "NOT_DECODABLE"),
        (b"{}", "MISSING_TEXT"),
        (b'{"text": null}', "MISSING_TEXT"),
        (b'{"text": 7}', "TEXT_NOT_A_STRING"),
        (b'{"text": ""}', "EMPTY_TEXT"),
        (b'{"text": "\\ud800"}', "NOT_UNICODE"),
        (b'{"text": "\xe9"}', "NOT_DECODABLE"),
        (b'{"text": "' + b"x" * 524_289 + b'"}', "TEXT_TOO_LONG"),
    ],
)
def test_a_line_that_gives_no_record_says_why(line: bytes, reason: str) -> None:
    with pytest.raises(RecordRefusedError) as caught:
        record_of_line(LINES, line)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("identity", "record_id"),
    [("7", "7"), ("7.0", "7.0"), ("9" * 400, "id_"), ("9" * 5000, "id_"), (f'"{"x" * 200}"', "id_")],
)
def test_an_identity_of_any_kind_and_length_becomes_a_record_id(identity: str, record_id: str) -> None:
    record = record_of_line(JsonLines("/x", id_field="id"), f'{{"text": "t", "id": {identity}}}'.encode())
    assert record.record_id.startswith(record_id)
    assert (len(record.record_id) == 35) == (record_id == "id_")


def test_a_number_of_thousands_of_digits_beside_the_text_is_kept_and_refuses_nothing() -> None:
    record = record_of_line(JsonLines("/x"), b'{"text": "t", "side": ' + b"9" * 5000 + b"}")
    assert record.attributes["side"].startswith("999")


@pytest.mark.parametrize("identity", [{}, {"id": ""}, {"id": [1]}, {"id": True}, {"id": None}])
def test_an_identity_that_is_asked_for_must_be_there(identity: dict[str, object]) -> None:
    with pytest.raises(RecordRefusedError) as caught:
        record_of_line(JsonLines("/x", id_field="id"), json.dumps({"text": "t", **identity}).encode())
    assert caught.value.reason == "MISSING_ID"


def test_a_file_is_kept_as_it_is_but_for_its_mark() -> None:
    spec = TextFolder("/x", folder_attribute="topic")
    record = record_of_file(spec, b"\xef\xbb\xbfHead\r\n\r\nBody \n")
    assert record.text == "Head\r\n\r\nBody \n"
    assert record.attributes == {"path": "tech/1.txt", "topic": "tech"}
    text = "他说这本书很好" * 20
    assert record_of_file(TextFolder("/x", encoding="gb18030"), text.encode("gb18030")).text == text


def test_a_file_in_another_encoding_is_refused_with_what_it_looks_like() -> None:
    text = "他说这本书写得非常好，值得一读再读。我们都很喜欢这个故事。" * 5
    with pytest.raises(RecordRefusedError) as caught:
        record_of_file(TextFolder("/x"), text.encode("gb18030"))
    assert caught.value.reason == "NOT_DECODABLE"
    assert caught.value.metadata["looks_like"] in ("gb18030", "gbk", "gb2312", "cp936")
    assert "utf-8" in caught.value.message


def test_a_file_too_long_is_refused() -> None:
    for content in (b"x" * (MAX_FILE_BYTES + 1), b"x" * 524_289):
        with pytest.raises(RecordRefusedError) as caught:
            record_of_file(TextFolder("/x"), content)
        assert caught.value.reason == "TEXT_TOO_LONG"


def test_a_codec_that_does_not_say_where_it_fails_refuses_the_file_all_the_same() -> None:
    with pytest.raises(RecordRefusedError) as caught:
        record_of_file(TextFolder("/x", encoding="idna"), b"xn--a.b" + b"c" * 70)
    assert caught.value.reason == "NOT_DECODABLE"
