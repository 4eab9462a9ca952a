"""Rows of Parquet and Arrow files as members of records.

Such files are read at random places, so a file's bytes go to a temporary file first: it takes disk, not memory.
"""

from __future__ import annotations

import io
import json
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
# Unpacked size of one column of one row group: a small file could ask for any amount of memory.
_MAX_CHUNK_BYTES = 2 * 1024**3


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
                    for row in batch.to_pylist():
                        yield next(numbers), {name: _plain(row[name], labels.get(name)) for name in names}
            except (pa.ArrowException, OSError, OverflowError) as error:
                raise BadContentError("INVALID_PARQUET", f"row {next(numbers)} cannot be read: {error}") from error

    def record(self, source: str, file: ReadFile, piece: Row) -> RawRecord:
        """See `FileFormat`."""
        size = sum(len(value) for value in piece.values() if isinstance(value, str))
        if size > MAX_LINE_BYTES:
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
            for batch in reader:
                yield from _parts(batch.select(wanted))
            return
        stored.seek(0)
        try:
            # An error is better than memory without end, for counts that the file itself makes up.
            parquet = pq.ParquetFile(stored, thrift_string_size_limit=1 << 26, thrift_container_size_limit=1 << 20)
        except (pa.ArrowException, OSError) as error:
            raise BadContentError("INVALID_PARQUET", f"it is not valid Parquet: {error}") from error
        meta = parquet.metadata
        for group in range(meta.num_row_groups):
            row_group = meta.row_group(group)
            sizes = [row_group.column(number).total_uncompressed_size for number in range(row_group.num_columns)]
            if max(sizes, default=0) > _MAX_CHUNK_BYTES:
                raise BadContentError(
                    "SOURCE_TOO_LARGE",
                    f"a column of the row group {group} has more than {_MAX_CHUNK_BYTES} bytes; make groups smaller",
                )
        wanted = self._columns(parquet.schema_arrow.names)
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
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _nested(item: Any) -> Any:
    # Within a list JSON is written as text, which bytes cannot be.
    plain = _plain(item)
    return plain.hex() if isinstance(plain, bytes) else plain
