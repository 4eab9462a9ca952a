"""Parquet files and folders of Hugging Face's `datasets`: rows to records, and files that are damaged or hostile."""

from __future__ import annotations

import contextlib
import io
import json
import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import SourceSpec
from services.ingest.engine import arrow_rows
from services.ingest.engine.file_format import BadContentError, ReadFile
from services.ingest.engine.formats.datasets_folder import DatasetsFolder
from services.ingest.engine.formats.parquet_files import ParquetFiles
from services.kit.errors import FailedPreconditionError
from tests.sources import file_sources, pull

PLAIN = ParquetFiles("/x")
TABLE = pa.table({"text": ["one", "two", None, "four"], "label": ["a", None, "b", "a"]})


def parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=2)
    return out.getvalue()


def stream(table: pa.Table) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def rows(content: bytes, size: int = 1 << 20) -> list[Any]:
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    return list(PLAIN.split(ReadFile("a.parquet", "", chunks)))


@given(
    st.lists(st.tuples(st.none() | st.text(max_size=9), st.none() | st.integers(-5, 5)), max_size=9),
    st.integers(1, 400),
    st.sampled_from([parquet, stream]),
)
def test_rows_come_as_they_were_written(pairs: list[tuple[str | None, int | None]], size: int, write: Any) -> None:
    try:
        table = pa.table(
            {
                "text": pa.array([text for text, _ in pairs], pa.string()),
                "n": pa.array([n for _, n in pairs], pa.int64()),
            }
        )
    except UnicodeEncodeError:
        return
    found = rows(write(table), size)
    assert found == [(number, {"text": text, "n": n}) for number, (text, n) in enumerate(pairs, 1)]


@given(st.sampled_from([parquet(TABLE), stream(TABLE)]), st.data())
def test_a_damaged_file_gives_rows_or_an_error_and_nothing_else(content: bytes, data: st.DataObject) -> None:
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadContentError):
        rows(bytes(damaged)[: data.draw(st.integers(0, len(damaged)))])


def test_values_of_every_type_become_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["很好"],
            "id": [7],
            "when": [datetime(2026, 1, 2, 3, tzinfo=UTC)],
            "price": [Decimal("1.50")],
            "raw": [b"bytes"],
            "flags": [[True, False]],
            "user": [{"homeTown": "X", "age": 3}],
            "none": pa.array([None], pa.string()),
        }
    )
    (tmp_path / "a.parquet").write_bytes(parquet(table))
    spec = ParquetFiles(f"{tmp_path}/*.parquet", id_field="id")
    (record,) = pull(file_sources(tmp_path), SourceSpec("s", spec))
    assert isinstance(record, RawRecord)
    assert (record.record_id, record.text) == ("7", "很好")
    assert record.attributes == {
        "when": "2026-01-02T03:00:00+00:00",
        "price": "1.50",
        "raw": "bytes",
        "flags": "[true,false]",
        "user_home_town": "X",
        "user_age": "3",
    }
    spec = ParquetFiles(f"{tmp_path}/a.parquet", attribute_fields=("user.age", "price"))
    (record,) = pull(file_sources(tmp_path), SourceSpec("s", spec))
    assert isinstance(record, RawRecord)
    assert record.attributes == {"user_age": "3", "price": "1.50"}


def test_a_bad_row_is_refused_by_its_number_and_the_others_are_read(tmp_path: Path) -> None:
    texts = [b"good", None, b"\xff\xfe", b"last", b"x" * 600_000]
    table = pa.table({"text": texts, "image": [b"\x89PNG\xff"] * len(texts)})
    (tmp_path / "a.parquet").write_bytes(parquet(table))
    good, missing, bytes_, last, long = pull(
        file_sources(tmp_path), SourceSpec("s", ParquetFiles(f"{tmp_path}/a.parquet"))
    )
    assert [piece.text for piece in (good, last) if isinstance(piece, RawRecord)] == ["good", "last"]
    assert [
        (piece.location.rpartition(":")[2], piece.reason)
        for piece in (missing, bytes_, long)
        if isinstance(piece, Refusal)
    ] == [
        ("2", "MISSING_TEXT"),
        ("3", "NOT_DECODABLE"),
        ("5", "TEXT_TOO_LONG"),
    ]
    # An image beside the text refuses no record.
    assert isinstance(good, RawRecord)
    assert good.attributes == {"ingest_notes": "image: 5 bytes that are not UTF-8 text; left out"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "neither Parquet nor an Arrow stream"),
        (b'{"text": "JSON"}', "neither Parquet nor an Arrow stream"),
        (b"PAR1" + b"\0" * 50 + b"PAR1", "not valid Parquet"),
        (parquet(TABLE)[:-20], "not valid Parquet"),
        (stream(TABLE)[:-200], "row 1 cannot be read"),
        (parquet(pa.table({"body": ["x"]})), "there is no column 'text'; the file has body"),
    ],
)
def test_a_file_that_is_not_parquet_fails_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(FailedPreconditionError) as caught:
        pull(file_sources(tmp_path), SourceSpec("s", ParquetFiles(f"{tmp_path}/a.parquet")))
    assert "a.parquet" in caught.value.message
    assert words in caught.value.message


def test_columns_that_unpack_to_too_much_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_rows, "_MAX_CHUNK_BYTES", 1 << 20)
    content = parquet(pa.table({"text": ["x" * (1 << 21)]}))
    assert len(content) < 200_000
    with pytest.raises(BadContentError, match="write smaller groups"):
        rows(content)


def test_a_folder_of_datasets_names_its_splits_and_class_labels(tmp_path: Path) -> None:
    features = {"text": {"_type": "Value"}, "label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    metadata: dict[bytes | str, bytes | str] = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    columns: list[pa.Field[Any]] = [pa.field("text", pa.string()), pa.field("label", pa.int64())]
    schema = pa.schema(columns, metadata=metadata)
    for split, texts in (("train", ["a", "b"]), ("test", ["c"])):
        folder = tmp_path / "reviews" / split
        folder.mkdir(parents=True)
        table = pa.table({"text": texts, "label": [len(texts) % 2] * len(texts)}, schema=schema)
        (folder / "data-00000-of-00001.arrow").write_bytes(stream(table))
        (folder / "cache-1.arrow").write_bytes(stream(pa.table({"text": ["cached"]})))
        (folder / "state.json").write_text("{}")
    spec = SourceSpec("s", DatasetsFolder(f"{tmp_path}/reviews", folder_attribute="split"))
    found = pull(file_sources(tmp_path), spec)
    assert [(piece.text, piece.attributes) for piece in found if isinstance(piece, RawRecord)] == [
        ("c", {"label": "pos", "split": "test"}),
        ("a", {"label": "neg", "split": "train"}),
        ("b", {"label": "neg", "split": "train"}),
    ]
    (tmp_path / "reviews" / "train" / "data-00000-of-00001.arrow").write_bytes(b"broken")
    with pytest.raises(FailedPreconditionError, match=r"train/data-00000-of-00001\.arrow"):
        pull(file_sources(tmp_path), spec)


@pytest.mark.parametrize("metadata", [None, {}, {b"huggingface": b"{"}, {b"huggingface": b'{"info": []}'}])
def test_a_schema_without_labels_has_none(metadata: Any) -> None:
    assert arrow_rows.class_labels(metadata) == {}


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_stream_is_refused_before_it_is_unpacked(codec: Literal["zstd", "lz4"]) -> None:
    table = pa.table({"text": pa.array(["x" * (64 << 20)])})
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)
    assert len(out.getvalue()) < 1 << 20
    before = pa.total_allocated_bytes()
    with pytest.raises(BadContentError, match="its batches are compressed") as caught:
        rows(out.getvalue())
    assert caught.value.reason == "COMPRESSED_ARROW"
    assert pa.total_allocated_bytes() - before < 16 << 20


def test_a_text_that_a_file_stores_once_is_not_in_memory_as_often_as_it_occurs() -> None:
    many = 64
    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["x" * (4 << 20)] * many}), out)
    content = out.getvalue()
    assert len(content) < 1 << 20
    (batch,) = PLAIN._batches(io.BytesIO(content))
    assert batch.get_total_buffer_size() < 16 << 20
    tracemalloc.start()
    count = sum(len(row["text"]) == 4 << 20 for _, row in PLAIN.split(ReadFile("a.parquet", "", [content])))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == many
    assert peak < 64 << 20


def test_a_value_that_is_too_long_refuses_its_row_and_is_not_read(tmp_path: Path) -> None:
    table = pa.table({"text": ["one", "y" * (12 << 20), "three"], "n": [1, 2, 3]})
    for name, content in (("a.parquet", parquet(table)), ("b.parquet", stream(table))):
        (tmp_path / name).write_bytes(content)
        one, long, three = pull(file_sources(tmp_path), SourceSpec("s", ParquetFiles(f"{tmp_path}/{name}")))
        assert isinstance(one, RawRecord)
        assert isinstance(three, RawRecord)
        assert isinstance(long, Refusal)
        assert long.reason == "LINE_TOO_LONG"
        assert len(long.content) < 1000
