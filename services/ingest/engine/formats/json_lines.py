"""Files with one JSON object per line; no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from services.ingest.domain.record import RawRecord, RecordRefusedError
from services.ingest.engine.file_format import BOM, ReadFile
from services.ingest.engine.members import MAX_LINE_BYTES, MemberFormat
from services.kit.json_text import read_json


@dataclass(frozen=True)
class JsonLines(MemberFormat[bytes]):
    """Files of JSON lines; a piece is a line without its end."""

    field = "json_lines"
    pieces = "lines"

    def split(self, file: ReadFile) -> Iterator[tuple[int, bytes]]:
        """Lines without their ends, numbered from 1, without blank ones.

        A line beyond `MAX_LINE_BYTES` is cut one byte after the limit, so that it is recognised as too long while
        memory stays bounded.
        """
        number, rest = 0, b""
        for chunk in file.chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                number += 1
                if piece := _piece(number, line):
                    yield number, piece
            rest = rest[: MAX_LINE_BYTES + 1]
        if piece := _piece(number + 1, rest):
            yield number + 1, piece

    def record(self, source: str, file: ReadFile, piece: bytes) -> RawRecord:
        """See `FileFormat`."""
        return self.record_of_members(source, object_of(piece))


FORMAT = JsonLines


def _piece(number: int, line: bytes) -> bytes:
    if number == 1:
        line = line.removeprefix(BOM)
    return line.strip()[: MAX_LINE_BYTES + 1]


def object_of(line: bytes) -> dict[str, Any]:
    """The object in a line.

    Raises:
        RecordRefusedError: it is too long, not UTF-8, not JSON, or not an object.
    """
    if len(line) > MAX_LINE_BYTES:
        raise RecordRefusedError(f"The line has more than {MAX_LINE_BYTES} bytes.", reason="LINE_TOO_LONG")
    try:
        value = read_json(line.decode())
    except UnicodeDecodeError as error:
        raise RecordRefusedError(f"The line is not UTF-8 (byte {error.start}).", reason="NOT_DECODABLE") from error
    except ValueError as error:
        raise RecordRefusedError(f"The line is not valid JSON: {error}.", reason="INVALID_JSON") from error
    if not isinstance(value, dict):
        raise RecordRefusedError("The line is not a JSON object.", reason="NOT_AN_OBJECT")
    return value
