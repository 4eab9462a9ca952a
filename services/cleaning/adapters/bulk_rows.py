"""Rows of Parquet files as records, with what is wrong with the others."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.limits import MAX_TEXT_BYTES, utf8_size
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.ids import sha256_hex

if TYPE_CHECKING:
    import pyarrow as pa

INVALID_REASON = "invalid_record"
"""Reason of rows that are not a record; the detail names file, row and column."""
ATTRIBUTES = "attributes"
"""Column of a map or struct with all attributes, in the input and in the output."""
BATCH_ROWS = 2048

# As the contract has them (tidemill.ingest.v1.Record); a test holds them to it.
_SOURCE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_RECORD_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_ATTRIBUTE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_ATTRIBUTES = 64
_MAX_ATTRIBUTE_BYTES = 16_384
_SHOWN_COLUMNS = 20
_LONGEST_FILE = 100


class _NotText:
    """A value that is not UTF-8."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a row has the parts of a record.

    `record_id` empty: the column `record_id` if there is one, else the file and the row's number. `attributes` empty:
    the map or struct `attributes` if there is one, else every other column. `source` is that of rows without one.
    """

    text: str = "text"
    record_id: str = ""
    attributes: tuple[str, ...] = ()
    source: str = "bulk"


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of one file that are read; an empty name stands for a column that it does not have."""

    text: str
    record_id: str
    source: str
    nested: str
    attributes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All of them."""
        single = [name for name in (self.text, self.record_id, self.source, self.nested) if name]
        return list(dict.fromkeys([*single, *self.attributes]))


@dataclass(frozen=True, slots=True)
class Row:
    """A row as a record; `wrong` says why it is none."""

    record_id: str
    source: str
    text: str
    attributes: Mapping[str, str]
    wrong: Rejection | None = None


def layout_of(schema: pa.Schema, columns: Columns, file: str) -> Layout:
    """Finds the columns of a file.

    Raises:
        InvalidArgumentError: one is missing or has another type; names the file, the column and what to do.
    """
    names = list(schema.names)
    for name in names:
        if names.count(name) > 1:
            raise _wrong_column(file, name, "there are two of this name; rename one")
    if columns.text not in names:
        what = "there is no such column; name the one with the text with --text-column"
        raise _wrong_column(file, columns.text, what, names)
    if not _is_text(schema.field(columns.text).type):
        what = f"has the type {schema.field(columns.text).type}, not text; convert it, or name another --text-column"
        raise _wrong_column(file, columns.text, what)
    record_id = columns.record_id or ("record_id" if "record_id" in names else "")
    if record_id:
        if record_id not in names:
            what = "there is no such column; name the one with the id with --id-column, or leave the option out"
            raise _wrong_column(file, record_id, what, names)
        if not (_is_text(schema.field(record_id).type) or _is_integer(schema.field(record_id).type)):
            what = f"has the type {schema.field(record_id).type}; an id is text or a whole number"
            raise _wrong_column(file, record_id, what)
    source = "source" if "source" in names else ""
    if source and not _is_text(schema.field(source).type):
        raise _wrong_column(file, source, f"has the type {schema.field(source).type}, not text; convert or rename it")
    taken = {columns.text, record_id, source}
    nested = ""
    if columns.attributes:
        chosen = columns.attributes
    elif ATTRIBUTES in names and ATTRIBUTES not in taken and _is_nested(schema.field(ATTRIBUTES).type):
        nested, chosen = ATTRIBUTES, ()
    else:
        chosen = tuple(name for name in names if name not in taken)
    for name in chosen:
        _check_attribute(schema, name, file)
    return Layout(columns.text, record_id, source, nested, chosen)


def rows_of(batch: pa.RecordBatch, layout: Layout, columns: Columns, file: str, first_row: int) -> Iterator[Row]:
    """The rows of a batch.

    Args:
        batch: with the layout's columns.
        layout: of the file.
        columns: as asked for; has the source of rows without one.
        file: its name within the input, for ids and errors.
        first_row: number of the batch's first row in the file, from 0.
    """
    values = {name: _values(batch.column(name)) for name in layout.names}
    for at in range(batch.num_rows):
        yield _row({name: each[at] for name, each in values.items()}, layout, columns, file, first_row + at)


def positional_id(file: str, row: int) -> str:
    """The id of a row without one; ids sort like the rows of the file."""
    if not (_RECORD_ID.fullmatch(file) and len(file) <= _LONGEST_FILE):
        file = sha256_hex(file)[:32]
    return f"{file}:{row:010d}"


def _row(value: Mapping[str, Any], layout: Layout, columns: Columns, file: str, row: int) -> Row:
    record_id, source = positional_id(file, row), columns.source
    text: Any = None
    attributes: dict[str, str] = {}
    try:
        if layout.record_id:
            record_id = _matching(value[layout.record_id], layout.record_id, _RECORD_ID)
        if layout.source and value[layout.source] is not None:
            source = _matching(value[layout.source], layout.source, _SOURCE)
        text = value[layout.text]
        _check_text(text, layout.text)
        found = value[layout.nested] if layout.nested else {name: value[name] for name in layout.attributes}
        attributes = _attributes(found)
    except _WrongValueError as error:
        detail = f"file={file} row={row} column={error.column}: {error}"
        return Row(record_id, source, "", {}, Rejection(INVALID_REASON, detail))
    return Row(record_id, source, text, attributes)


class _WrongValueError(Exception):
    def __init__(self, column: str, description: str) -> None:
        super().__init__(description)
        self.column = column


def _matching(value: Any, column: str, pattern: re.Pattern[str]) -> str:
    if value is None or isinstance(value, _NotText):
        raise _WrongValueError(column, "is missing" if value is None else "is not UTF-8")
    text = str(value)
    if pattern.fullmatch(text) is None:
        raise _WrongValueError(column, f"does not match {pattern.pattern}")
    return text


def _check_text(text: Any, column: str) -> None:
    if text is None or text == "":
        raise _WrongValueError(column, "is empty")
    if isinstance(text, _NotText):
        raise _WrongValueError(column, "is not UTF-8")
    if len(text) * 4 > MAX_TEXT_BYTES and (size := utf8_size(text)) > MAX_TEXT_BYTES:
        raise _WrongValueError(column, f"has {size} bytes; the limit is {MAX_TEXT_BYTES}")


def _attributes(found: Any) -> dict[str, str]:
    pairs: Sequence[tuple[Any, Any]] = list(found.items()) if isinstance(found, Mapping) else found or []
    attributes: dict[str, str] = {}
    for name, value in pairs:
        if value is None:
            continue
        if not isinstance(name, str) or _ATTRIBUTE.fullmatch(name) is None:
            raise _WrongValueError(ATTRIBUTES, "has a name that no attribute may have; use a-z, 0-9 and _")
        text = _attribute_text(name, value)
        if len(text) * 4 > _MAX_ATTRIBUTE_BYTES and (size := utf8_size(text)) > _MAX_ATTRIBUTE_BYTES:
            raise _WrongValueError(name, f"has {size} bytes; the limit of an attribute is {_MAX_ATTRIBUTE_BYTES}")
        attributes[name] = text
    if len(attributes) > _MAX_ATTRIBUTES:
        raise _WrongValueError(ATTRIBUTES, f"has {len(attributes)} attributes; the limit is {_MAX_ATTRIBUTES}")
    return attributes


def _attribute_text(name: str, value: Any) -> str:
    """As ingest has it: text as it is, numbers and booleans as in JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, _NotText):
        raise _WrongValueError(name, "is not UTF-8")
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise _WrongValueError(name, f"has a value that is neither text nor a number ({type(value).__name__})")


def _values(column: pa.Array[Any]) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(column[at]) for at in range(len(column))]
    return values


def _value(scalar: pa.Scalar[Any]) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return _NotText()


def _check_attribute(schema: pa.Schema, name: str, file: str) -> None:
    choose = "choose the columns that become attributes with --attribute"
    if name not in schema.names:
        raise _wrong_column(file, name, f"there is no such column; {choose}", list(schema.names))
    if _ATTRIBUTE.fullmatch(name) is None:
        raise _wrong_column(file, name, f"is not a name of an attribute (a-z, 0-9, _); rename it, or {choose}")
    kind = schema.field(name).type
    if not (_is_text(kind) or _is_integer(kind) or _is_number(kind)):
        raise _wrong_column(file, name, f"has the type {kind}; an attribute is text or a number; {choose}")


def _wrong_column(file: str, column: str, what: str, names: Sequence[str] = ()) -> InvalidArgumentError:
    have = f" (the file has {', '.join(names[:_SHOWN_COLUMNS]) or 'no columns'})" if names else ""
    description = f"{what}{have}."
    return InvalidArgumentError(
        f"{file}: column {column!r}: {description}",
        reason="INVALID_COLUMN",
        metadata={"file": file, "column": column},
        violations=[FieldViolation(column, description)],
    )


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_integer(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind))


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind))


def _is_nested(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_map(kind) or pa.types.is_struct(kind))
