"""Bad files: empty, in other encodings, endless, nested. Errors name file, line and field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.ingest.app.interrupt import Interrupt
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import SourceSpec
from services.ingest.engine.formats.json_lines import JsonLines
from services.ingest.engine.formats.text_folder import TextFolder
from services.kit.errors import InvalidArgumentError
from tests.examples import examples
from tests.sources import file_sources, pull


def pieces_of(folder: Path, content: bytes, text_field: str = "text", id_field: str = "") -> list[RawRecord | Refusal]:
    path = folder / "a.jsonl"
    path.write_bytes(content)
    return pull(file_sources(folder), SourceSpec("s", JsonLines(str(path), text_field, id_field)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\xef\xbb\xbf", []),
        (b"\r\n\r\n", []),
        (b'\xef\xbb\xbf{"text": "x"}\r\n{"text": "y"}\r\n', ["x", "y"]),
        (b'{"text": "x"}', ["x"]),
        (b'{"text": "x"}\n\xff\xfe\x00\n{"text": "y"}', ["x", "2 NOT_DECODABLE", "y"]),
        ('{"text": "x"}'.encode("utf-16"), ["1 NOT_DECODABLE"]),
        (b'{"text": "x"}\n{"text": "x"', ["x", "2 INVALID_JSON"]),
        (b"[" * 200_000 + b"\n" + b'{"a":' * 100_000 + b'\n{"text": "y"}', ["1 INVALID_JSON", "2 INVALID_JSON", "y"]),
        (b'{"text": NaN}\n{"text": "x", "n": NaN}', ["1 TEXT_NOT_A_STRING", "x"]),
        (b'{"text": "a", "text": "b"}', ["1 FIELD_TWICE"]),
        (b"null\n7\n[]\n{}", ["1 NOT_AN_OBJECT", "2 NOT_AN_OBJECT", "3 NOT_AN_OBJECT", "4 MISSING_TEXT"]),
        (b'{"text": "' + b"x" * (50 << 20) + b'"}\n{"text": "y"}', ["1 LINE_TOO_LONG", "y"]),
        (b'{"text": "\x00"}', ["1 INVALID_JSON"]),
    ],
    ids=range(14),
)
def test_a_bad_line_is_refused_with_its_number_and_others_are_read(
    tmp_path: Path, content: bytes, expected: list[str]
) -> None:
    found = []
    for piece in pieces_of(tmp_path, content):
        if isinstance(piece, RawRecord):
            found.append(piece.text)
            continue
        file, _, line = piece.location.rpartition(":")
        assert file == f"file://{tmp_path}/a.jsonl"
        found.append(f"{line} {piece.reason}")
    assert found == expected


def test_a_refusal_names_the_field(tmp_path: Path) -> None:
    for content, words in (
        (b'{"body": 7}', "'body'"),
        (b'{"body": "a", "body": "b"}', "'body'"),
        (b'{"body": "x", "key": null}', "'key'"),
        (b'{"body": "x", }', "column"),
    ):
        (piece,) = pieces_of(tmp_path, content, text_field="body", id_field="key")
        assert isinstance(piece, Refusal)
        assert words in piece.message


@settings(examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.binary(max_size=40)
        | st.dictionaries(st.sampled_from(["text", "id", "a"]), st.text() | st.integers() | st.none()).map(
            lambda value: json.dumps(value).encode()
        ),
        max_size=8,
    )
)
def test_each_line_is_a_record_or_a_refusal_and_no_line_is_lost(tmp_path: Path, lines: list[bytes]) -> None:
    content = b"\n".join(lines)
    pieces = pieces_of(tmp_path, content)
    numbered = {
        number
        for number, line in enumerate(content.split(b"\n"), 1)
        if (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
    }
    assert len(pieces) == len(numbered)
    refused = {int(piece.location.rpartition(":")[2]) for piece in pieces if isinstance(piece, Refusal)}
    assert refused <= numbered
    for number in numbered - refused:
        value = json.loads(content.split(b"\n")[number - 1].decode("utf-8-sig"))
        assert any(isinstance(piece, RawRecord) and piece.text == value["text"] for piece in pieces)


def test_a_file_of_a_folder_that_vanishes_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    sources, spec = file_sources(tmp_path), SourceSpec("s", TextFolder(str(tmp_path)))
    survey = sources.survey(spec, Interrupt())
    (tmp_path / "a.txt").unlink()
    gone, kept = sources.read(spec, survey, Interrupt())
    assert isinstance(gone, Refusal)
    assert (gone.reason, gone.location) == ("UNREADABLE_FILE", f"file://{tmp_path}/a.txt")
    assert isinstance(kept, RawRecord)


def test_example_data_that_no_one_fetched_names_the_command_that_does(tmp_path: Path) -> None:
    sources = file_sources(tmp_path, examples=tmp_path)
    for kind in (JsonLines(f"{tmp_path}/reviews/reviews.jsonl"), TextFolder(f"{tmp_path}/bbc")):
        with pytest.raises(InvalidArgumentError) as caught:
            sources.survey(SourceSpec("s", kind), Interrupt())
        assert "tidemill run" in caught.value.message
