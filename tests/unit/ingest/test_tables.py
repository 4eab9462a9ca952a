"""CSV: rows to records, what is refused by its line, and what ends an import by name."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.domain.record import RawRecord, RecordRefusedError, Refusal
from services.ingest.domain.source_import import SourceSpec, check_spec
from services.ingest.engine.file_format import BadContentError, ReadFile
from services.ingest.engine.formats.csv_files import BadRow, CsvFiles
from services.kit.errors import FailedPreconditionError, InvalidArgumentError
from tests.sources import file_sources, pull


def rows(content: bytes, spec: CsvFiles, name: str = "a.csv", size: int = 1 << 20) -> list[Any]:
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    return list(spec.split(ReadFile(name, "", chunks)))


def write(tmp_path: Path, name: str, content: bytes) -> str:
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)


def test_columns_are_text_id_and_attributes(tmp_path: Path) -> None:
    content = '\ufeffid,text,homeTown,Größe,empty\r\n7,"one, ""two""\nthree",X,12,\r\n\r\n8,四,,,\r\n'.encode()
    uri = write(tmp_path, "a.csv", content)
    first, second = pull(file_sources(tmp_path), SourceSpec("s", CsvFiles(uri, id_field="id")))
    assert isinstance(first, RawRecord)
    assert (first.record_id, first.text) == ("7", 'one, "two"\nthree')
    assert first.attributes["home_town"] == "X"
    assert "empty" not in first.attributes
    assert isinstance(second, RawRecord)
    assert (second.record_id, second.text, second.attributes) == ("8", "四", {})
    (only, _) = pull(file_sources(tmp_path), SourceSpec("s", CsvFiles(uri, attribute_fields=("homeTown",))))
    assert isinstance(only, RawRecord)
    assert only.attributes == {"home_town": "X"}


def test_delimiters_encodings_and_packed_files(tmp_path: Path) -> None:
    sources = file_sources(tmp_path)
    write(tmp_path, "b.tsv.gz", gzip.compress(b"text\tlabel\na,b\tx\n"))
    write(tmp_path, "c.txt", "text;label\n好;y\n".encode("gb18030"))
    for spec, text in (
        (CsvFiles(f"{tmp_path}/*.tsv.gz"), "a,b"),
        (CsvFiles(f"{tmp_path}/c.txt", delimiter=";", encoding="gb18030"), "好"),
    ):
        (record,) = pull(sources, SourceSpec("s", spec))
        assert isinstance(record, RawRecord)
        assert (record.text, len(record.attributes)) == (text, 1)


def test_a_bad_row_is_refused_by_its_line_and_the_others_are_read(tmp_path: Path) -> None:
    content = b'text,label\none,x\xff\nonly one\n\xff,y\n,z\n"a"b,z\nlast,x\n"never closed,x\nand more\n'
    pieces = pull(file_sources(tmp_path), SourceSpec("s", CsvFiles(write(tmp_path, "a.csv", content))))
    records = [piece for piece in pieces if isinstance(piece, RawRecord)]
    assert [record.text for record in records] == ["one", "last"]
    # A cell beside the text is not what a record cannot live without.
    assert records[0].attributes == {"label": "x\ufffd", "ingest_notes": "label: what is not a character was replaced"}
    refused = [piece for piece in pieces if isinstance(piece, Refusal)]
    assert [(piece.location.rpartition(":")[2], piece.reason) for piece in refused] == [
        ("3", "WRONG_NUMBER_OF_CELLS"),
        ("4", "NOT_DECODABLE"),
        ("5", "MISSING_TEXT"),
        ("6", "INVALID_CSV"),
        ("9", "INVALID_CSV"),
    ]
    assert refused[1].content == b"\xff,y"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"body,label\na,b\n", "MISSING_COLUMN"),
        (b"text,text\na,b\n", "COLUMN_TWICE"),
        (b"text,\xff\na,b\n", "NOT_DECODABLE"),
        (b'"text"x,label\na,b\n', "INVALID_CSV"),
    ],
)
def test_a_header_that_lacks_what_is_needed_ends_the_import(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(FailedPreconditionError, match=r"a\.csv") as caught:
        pull(file_sources(tmp_path), SourceSpec("s", CsvFiles(write(tmp_path, "a.csv", content))))
    assert caught.value.reason == reason


def test_a_cell_without_end_is_bounded() -> None:
    (found,) = rows(b'text\n"' + b"x" * (5 << 20), CsvFiles("/x"), size=1 << 16)[:1]
    assert isinstance(found[1], BadRow)


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from([b"a", b",", b'"', b"\n", b"\r", b"\0", b"\xff", b";", "好".encode(), b"text"]), max_size=30
    ),
    st.integers(1, 5),
)
def test_whatever_comes_is_a_record_or_refused(pieces: list[bytes], size: int) -> None:
    content, spec = b"text,label\n" + b"".join(pieces), CsvFiles("/x")
    found = rows(content, spec, size=size)
    assert [(n, getattr(r, "reason", r)) for n, r in found] == [
        (n, getattr(r, "reason", r)) for n, r in rows(content, spec)
    ]
    for _, row in found:
        if not isinstance(row, BadRow):
            try:
                record = spec.record("s", ReadFile("a.csv", "", ()), row)
            except RecordRefusedError:
                continue
            assert record.text == row["text"]


def test_a_header_alone_has_no_rows() -> None:
    assert rows(b"text,label\n", CsvFiles("/x")) == rows(b"", CsvFiles("/x")) == []
    with pytest.raises(BadContentError):
        rows(b"other\n", CsvFiles("/x"))


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (CsvFiles("a.csv"), "spec.csv_files.uri"),
        (CsvFiles("/x", delimiter='"'), "spec.csv_files.delimiter"),
        (CsvFiles("/x", delimiter=";;"), "spec.csv_files.delimiter"),
        (CsvFiles("/x", encoding="base64"), "spec.csv_files.encoding"),
        (CsvFiles("/x", attribute_fields=("",)), "spec.csv_files.attribute_fields[0]"),
    ],
)
def test_a_wrong_field_is_named(kind: CsvFiles, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_spec(SourceSpec("s", kind))
    assert [violation.field for violation in caught.value.violations] == [field]
