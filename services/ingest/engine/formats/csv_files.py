"""CSV files to records, a row each (RFC 4180, and what spreadsheets make of it); no I/O."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from services.ingest.domain.record import RawRecord, RecordRefusedError
from services.ingest.engine.file_format import DEFAULT_ENCODING, BadContentError, ReadFile, encoding_violations
from services.ingest.engine.members import MAX_LINE_BYTES, MemberFormat

_UNDECODABLE = re.compile("[\udc80-\udcff]")
_SHOWN_COLUMNS = 20
_NO_DELIMITERS = ('"', "\n", "\r", "\0", " ")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, with its cells as far as they are known; `reason` is the code."""

    reason: str
    message: str
    cells: Sequence[str]


@dataclass(frozen=True)
class CsvFiles(MemberFormat["dict[str, str] | BadRow"]):
    """CSV files whose first row names the columns; a piece is a row, as cells by column.

    `delimiter` is a comma where it is empty, and a tab in files called `.tsv`.
    """

    delimiter: str = ""
    encoding: str = DEFAULT_ENCODING
    field = "csv_files"

    def violations(self) -> Iterator[tuple[str, str]]:
        """See `FileFormat`."""
        yield from super().violations()
        yield from encoding_violations(self.encoding)
        if len(self.delimiter) > 1 or self.delimiter in _NO_DELIMITERS:
            message = f"{self.delimiter!r} cannot stand between cells; use one character, for example `;` or a tab."
            yield "delimiter", message

    def split(self, file: ReadFile) -> Iterator[tuple[int, dict[str, str] | BadRow]]:
        """Rows below the header, each with the number of its last line; empty rows are left out.

        A cell may contain line ends. A row that cannot be read is a `BadRow`, and the next one is read.
        """
        # The limit is one of the process; no other part of ingest reads CSV.
        csv.field_size_limit(MAX_LINE_BYTES)
        delimiter = self.delimiter or ("\t" if ".tsv" in file.path.lower() else ",")
        reader = csv.reader(_lines(file.chunks, self.encoding), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if header is None:
                    raise BadContentError("INVALID_CSV", f"the first row is not valid CSV: {error}") from error
                yield reader.line_num, BadRow("INVALID_CSV", f"The row is not valid CSV: {error}.", [])
                continue
            if not any(row):
                continue
            if header is None:
                header = _checked(row, self)
            elif len(row) != len(header):
                message = f"The row has {len(row)} cells, the first row names {len(header)} columns."
                yield reader.line_num, BadRow("WRONG_NUMBER_OF_CELLS", message, row)
            else:
                cells = dict(zip(header, row, strict=True))
                # In other cells what is not a character is replaced, with a note.
                bad = next((name for name in (self.text_field, self.id_field) if _is_garbled(cells.get(name, ""))), "")
                message = f"The column {bad!r} is not in {self.encoding}."
                yield reader.line_num, BadRow("NOT_DECODABLE", message, row) if bad else cells

    def record(self, source: str, file: ReadFile, piece: dict[str, str] | BadRow) -> RawRecord:
        """See `FileFormat`; empty cells are left out."""
        if isinstance(piece, BadRow):
            raise RecordRefusedError(piece.message, reason=piece.reason)
        return self.record_of_members(source, {name: cell for name, cell in piece.items() if cell != ""})

    def content(self, piece: dict[str, str] | BadRow) -> bytes:
        """See `FileFormat`."""
        cells = piece.cells if isinstance(piece, BadRow) else piece.values()
        return ",".join(cells).encode("utf-8", "surrogateescape")


FORMAT = CsvFiles


def _is_garbled(cell: str) -> bool:
    return _UNDECODABLE.search(cell) is not None


def _checked(header: list[str], spec: CsvFiles) -> list[str]:
    if _UNDECODABLE.search("".join(header)):
        raise BadContentError("NOT_DECODABLE", f"the first row is not in {spec.encoding}")
    needed = [spec.text_field, *filter(None, [spec.id_field]), *spec.attribute_fields]
    for name in needed:
        if name not in header:
            columns = ", ".join(header[:_SHOWN_COLUMNS])
            raise BadContentError("MISSING_COLUMN", f"there is no column {name!r}; the first row names {columns}")
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if twice:
        raise BadContentError("COLUMN_TWICE", f"two columns are called {twice[0]!r}; rename one")
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
