"""Rows of CSV files to records (RFC 4180, and what spreadsheets make of it); no I/O."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from services.ingest.domain.record import RawRecord
from services.ingest.domain.source_import import CsvFiles
from services.ingest.engine.parsing import MAX_LINE_BYTES, record_of_members

_UNDECODABLE = re.compile("[\udc80-\udcff]")
_SHOWN_COLUMNS = 20


class BadHeaderError(Exception):
    """A file's first row does not name the columns that the source needs; `reason` is the code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def rows_of(chunks: Iterable[bytes], spec: CsvFiles, name: str) -> Iterator[tuple[int, dict[str, str] | BadRow]]:
    """Rows below the header, as cells by column, each with the number of its last line; empty rows are left out.

    A cell may hold line ends. A row that cannot be read is a `BadRow`, and the next one is read.

    Args:
        chunks: the file's bytes.
        spec: what is pulled.
        name: the file's name; `.tsv` ones have tabs between cells unless the spec says otherwise.

    Raises:
        BadHeaderError: a column is missing or named twice.
    """
    # The limit is one of the process; no other part of ingest reads CSV.
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = spec.delimiter or ("\t" if ".tsv" in name.lower() else ",")
    reader = csv.reader(_lines(chunks, spec.encoding), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise BadHeaderError("INVALID_CSV", f"the first row is not valid CSV: {error}") from error
            yield reader.line_num, BadRow("INVALID_CSV", f"The row is not valid CSV: {error}.", [])
            continue
        if not any(row):
            continue
        if header is None:
            header = _checked(row, spec)
        elif len(row) != len(header):
            message = f"The row has {len(row)} cells, the first row names {len(header)} columns."
            yield reader.line_num, BadRow("WRONG_NUMBER_OF_CELLS", message, row)
        elif _UNDECODABLE.search("".join(row)):
            yield reader.line_num, BadRow("NOT_DECODABLE", f"The row is not in {spec.encoding}.", row)
        else:
            yield reader.line_num, dict(zip(header, row, strict=True))


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, with its cells as far as they are known; `reason` is the code."""

    reason: str
    message: str
    cells: Sequence[str]

    @property
    def content(self) -> bytes:
        """The cells, about as they stood in the file."""
        return ",".join(self.cells).encode("utf-8", "surrogateescape")


def record_of_row(source: str, spec: CsvFiles, cells: dict[str, str]) -> RawRecord:
    """The record of a row. Its attributes are the columns that the spec names, or all of them; empty cells are none.

    Raises:
        RecordRefusedError: it is not a valid record; the message names the column.
    """
    return record_of_members(source, spec, {name: cell for name, cell in cells.items() if cell != ""})


def _checked(header: list[str], spec: CsvFiles) -> list[str]:
    if _UNDECODABLE.search("".join(header)):
        raise BadHeaderError("NOT_DECODABLE", f"the first row is not in {spec.encoding}")
    needed = [spec.text_field, *filter(None, [spec.id_field]), *spec.attribute_fields]
    for name in needed:
        if name not in header:
            columns = ", ".join(header[:_SHOWN_COLUMNS])
            raise BadHeaderError("MISSING_COLUMN", f"there is no column {name!r}; the first row names {columns}")
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if twice:
        raise BadHeaderError("COLUMN_TWICE", f"two columns are called {twice[0]!r}; rename one")
    return header


def _lines(chunks: Iterable[bytes], encoding: str) -> Iterator[str]:
    """Lines with their ends, decoded; bytes that are not in the encoding come as surrogates."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
    rest, first = "", True
    for chunk in chunks:
        text = rest + decoder.decode(chunk)
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        *lines, rest = text.split("\n")
        for line in lines:
            yield line + "\n"
        if len(rest) > MAX_LINE_BYTES:
            # The reader takes lines in parts, too, and refuses what is too long for a cell.
            yield rest
            rest = ""
    if rest := rest + decoder.decode(b"", final=True):
        yield rest
