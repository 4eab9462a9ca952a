"""Rows of Parquet and Arrow files as members of records.

Such files are read at random places, so a file's bytes go to a temporary file first: it takes disk, not memory.
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from itertools import count
from typing import IO, Any, cast

from services.ingest.domain.record import RawRecord, RecordRefusedError
from services.ingest.engine.file_format import BadContentError, ReadFile
from services.ingest.engine.members import MAX_LINE_BYTES, MemberFormat

Row = Mapping[str, Any]

_PARQUET = b"PAR1"
_BATCH_ROWS = 256
_SHOWN_COLUMNS = 20
_DICTIONARY_BATCH = 2
# Unpacked size of one column of one row group: a small file could ask for any amount of memory.
_MAX_CHUNK_BYTES = 256 * 1024**2
# Values of the rows that are in memory as Python objects at a time.
_AT_ONCE_BYTES = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class TooLong:
    """A value that is too long to be read, with its length in bytes."""

    length: int


@dataclass(frozen=True)
class RowFormat(MemberFormat[Row]):
    """Files of rows, Parquet or Arrow; a piece is a row."""

    def split(self, file: ReadFile) -> Iterator[tuple[int, Row]]:
        """Rows, numbered from 1."""
        import pyarrow as pa

        numbers = count(1)
        with _spooled(file.chunks) as stored:
            try:
                for batch in self._batches(stored):
                    names, labels = batch.schema.names, class_labels(batch.schema.metadata)
                    for row in _rows(batch):
                        yield next(numbers), {name: _plain(row[name], labels.get(name)) for name in names}
            except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError, struct.error) as error:
                raise BadContentError("INVALID_PARQUET", f"row {next(numbers)} cannot be read: {error}") from error

    def record(self, source: str, file: ReadFile, piece: Row) -> RawRecord:
        """See `FileFormat`."""
        too_long = any(isinstance(value, TooLong) for value in piece.values())
        if too_long or sum(len(value) for value in piece.values() if isinstance(value, str)) > MAX_LINE_BYTES:
            raise RecordRefusedError(f"The row has more than {MAX_LINE_BYTES} characters.", reason="LINE_TOO_LONG")
        for name in (self.text_field, self.id_field):
            # Other columns, such as images beside the text, are left out with a note.
            if isinstance(piece.get(name), bytes):
                raise RecordRefusedError(f"The column {name!r} is not UTF-8 text.", reason="NOT_DECODABLE")
        return self.record_of_members(source, {name: value for name, value in piece.items() if value is not None})

    def content(self, piece: Row) -> bytes:
        """See `FileFormat`."""
        return json.dumps(piece, ensure_ascii=False, default=repr).encode("utf-8", "surrogatepass")

    def _batches(self, stored: IO[bytes]) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if stored.read(4) != _PARQUET:
            stored.seek(0)
            try:
                reader = pa.ipc.open_stream(cast(io.BufferedIOBase, stored))
            except pa.ArrowInvalid as error:
                raise BadContentError(
                    "INVALID_PARQUET", f"it is neither Parquet nor an Arrow stream: {error}"
                ) from error
            wanted = self._columns(reader.schema.names)
            _check_stream(stored)
            for batch in pa.ipc.open_stream(_mapped(stored)):
                yield from _parts(batch.select(wanted))
            return
        stored.seek(0)
        # An error is better than memory without end, for counts that the file itself makes up.
        limits: dict[str, Any] = {"thrift_string_size_limit": 1 << 26, "thrift_container_size_limit": 1 << 20}
        try:
            parquet = pq.ParquetFile(stored, **limits)
            # A text that repeats is stored once, and would be in memory as often as it occurs.
            columns = [parquet.schema.column(number) for number in range(len(parquet.schema))]
            texts = [each.path for each in columns if each.physical_type == "BYTE_ARRAY" and "." not in each.path]
            stored.seek(0)
            parquet = pq.ParquetFile(stored, read_dictionary=texts, **limits)
        except (pa.ArrowException, OSError) as error:
            raise BadContentError("INVALID_PARQUET", f"it is not valid Parquet: {error}") from error
        wanted = self._columns(parquet.schema_arrow.names)
        for group in range(parquet.metadata.num_row_groups):
            row_group = parquet.metadata.row_group(group)
            for column in (row_group.column(number) for number in range(row_group.num_columns)):
                if column.path_in_schema.partition(".")[0] not in wanted:
                    continue
                if column.total_uncompressed_size > _MAX_CHUNK_BYTES:
                    raise BadContentError(
                        "SOURCE_TOO_LARGE",
                        f"the column {column.path_in_schema!r} of the row group {group} has more than "
                        f"{_MAX_CHUNK_BYTES} bytes; write smaller groups, or name the attribute_fields that you need",
                    )
        yield from parquet.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False)

    def _columns(self, names: Sequence[str]) -> list[str]:
        """The columns that are read."""
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise BadContentError("COLUMN_TWICE", f"two columns are called {twice[0]!r}; rename one")
        needed = [self.text_field, *filter(None, [self.id_field])]
        # A nested attribute is named by its path.
        attributes = [name if name in names else name.partition(".")[0] for name in self.attribute_fields]
        for name in (*needed, *attributes):
            if name not in names:
                shown = ", ".join(names[:_SHOWN_COLUMNS])
                raise BadContentError("MISSING_COLUMN", f"there is no column {name!r}; the file has {shown}")
        return list(dict.fromkeys([*needed, *attributes])) if self.attribute_fields else list(names)


def class_labels(metadata: Mapping[bytes, bytes] | None) -> dict[str, Sequence[str]]:
    """Names of class labels by column, as Hugging Face's `datasets` writes them into a schema; empty without any."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature["names"], list)
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


@contextmanager
def _spooled(chunks: Iterable[bytes]) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile(prefix="tidemill-source-") as stored:
        for chunk in chunks:
            stored.write(chunk)
        stored.seek(0)
        yield stored


def _mapped(stored: IO[bytes]) -> Any:
    """The file as memory of its own pages: a batch takes memory only where it is read."""
    import pyarrow as pa

    stored.flush()
    return pa.memory_map(f"/proc/self/fd/{stored.fileno()}")


def _check_stream(stored: IO[bytes]) -> None:
    """Refuses an Arrow stream with compressed batches: they are unpacked whole, whatever their size."""
    import pyarrow as pa

    for message in pa.ipc.MessageReader.open_stream(_mapped(stored)):
        if message.type in ("record batch", "dictionary") and _is_compressed(message.metadata.to_pybytes()):
            raise BadContentError(
                "COMPRESSED_ARROW", "its batches are compressed; write it without compression, or as Parquet"
            )


def _is_compressed(metadata: bytes) -> bool:
    """Whether a batch's message says that its buffers are compressed.

    pyarrow does not show it. The message is a FlatBuffers table (Arrow's format/Message.fbs): field 2 is the header,
    whose field 3 is the compression; the header of a dictionary has the batch as its field 1.
    """

    def number(form: str, at: int) -> int:
        (value,) = struct.unpack_from(f"<{form}", metadata, at)
        return int(value)

    def field(table: int, index: int) -> int:
        """Where a field is; 0 if it is absent."""
        fields = table - number("i", table)
        offset = number("H", fields + 4 + 2 * index) if 4 + 2 * index < number("H", fields) else 0
        return table + offset if offset else 0

    def table(at: int) -> int:
        return at + number("I", at)

    message = table(0)
    batch = table(field(message, 2))
    if number("B", field(message, 1)) == _DICTIONARY_BATCH:
        batch = table(field(batch, 1))
    return bool(field(batch, 3))


def _rows(batch: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a batch, as many at a time as their longest values allow; what is too long is not read."""
    lengths = [_lengths(column) for column in batch.columns]
    longest = sum(max(each, default=0) for each in lengths)
    step = max(1, min(_BATCH_ROWS, _AT_ONCE_BYTES // (longest + 1)))
    for start in range(0, batch.num_rows, step):
        part = batch.slice(start, step)
        long = {
            name: TooLong(length[start])
            for name, length in zip(batch.schema.names, lengths, strict=True)
            if step == 1 and length and length[start] > MAX_LINE_BYTES
        }
        for row in part.drop_columns(list(long)).to_pylist():
            yield {**row, **long}


def _lengths(column: Any) -> list[int]:
    """The length of each text or binary value in bytes; empty for columns of other types."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        by_value = _lengths(column.dictionary)
        return [by_value[at] if at is not None else 0 for at in column.indices.to_pylist()] if by_value else []
    if not (
        pa.types.is_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_large_binary(kind)
    ):
        return []
    return [length or 0 for length in pc.binary_length(column).to_pylist()]


def _parts(batch: Any) -> Iterator[Any]:
    """A batch in parts: Arrow's batches are as large as their writer wanted."""
    for start in range(0, batch.num_rows, _BATCH_ROWS):
        yield batch.slice(start, _BATCH_ROWS)


def _plain(value: Any, labels: Sequence[str] | None = None) -> Any:
    """A value as JSON has it."""
    if labels is not None and isinstance(value, int) and 0 <= value < len(labels):
        return labels[value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nested(item) for item in value]
    return value if isinstance(value, str | int | float | bool | TooLong | None) else str(value)


def _nested(item: Any) -> Any:
    # Within a list JSON is written as text, which bytes cannot be.
    plain = _plain(item)
    return plain.hex() if isinstance(plain, bytes) else plain
