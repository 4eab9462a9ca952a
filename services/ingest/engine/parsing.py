"""Pieces of sources to records: a file's bytes, a line of JSON. What gives no record is refused with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from services.ingest.domain.record import MAX_TEXT_BYTES, RawRecord, RecordRefusedError, check_record
from services.ingest.domain.source_import import PATH_ATTRIBUTE, JsonLines, TextFolder

# A line may hold much beside the text; this bounds what is held in memory for it.
MAX_LINE_BYTES = 4 * 1024 * 1024
# No text encoding in use has more bytes a character than four times what UTF-8 has.
MAX_FILE_BYTES = 4 * MAX_TEXT_BYTES
_BOM = b"\xef\xbb\xbf"
_GUESSED_FROM_BYTES = 4096


def record_of_file(source: str, spec: TextFolder, path: str, folder: str, content: bytes) -> RawRecord:
    """The record of a text file.

    Args:
        source: name that the record bears.
        spec: the folder's spec.
        path: the file's path below the folder.
        folder: name of the folder that the file stands in.
        content: the file, or more than `MAX_FILE_BYTES` of its first bytes.

    Raises:
        RecordRefusedError: it gives no record.
    """
    if len(content) > MAX_FILE_BYTES:
        raise RecordRefusedError(
            f"The file has more than {MAX_FILE_BYTES} bytes; a record's text takes {MAX_TEXT_BYTES}.",
            reason="TEXT_TOO_LONG",
        )
    attributes = {PATH_ATTRIBUTE: path}
    if spec.folder_attribute:
        attributes[spec.folder_attribute] = folder
    record = RawRecord(source, _decode(content, spec.encoding), attributes)
    check_record(record)
    return record.identified()


def _decode(content: bytes, encoding: str) -> str:
    try:
        # The mark at the start of some UTF-8 files is no part of their text.
        return content.removeprefix(_BOM).decode(encoding)
    except UnicodeError as error:
        guess = _guess_encoding(content)
        hint = f"; it looks like {guess}" if guess else ""
        # Some codecs (idna, for one) do not say where.
        where = f"byte {error.start}: {error.reason}" if isinstance(error, UnicodeDecodeError) else str(error)
        raise RecordRefusedError(
            f"The file is not in {encoding} ({where}){hint}.",
            reason="NOT_DECODABLE",
            metadata={"encoding": encoding, "looks_like": guess},
        ) from error


def _guess_encoding(content: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(content[:_GUESSED_FROM_BYTES]).best()
    return best.encoding if best is not None else ""


def record_of_line(source: str, spec: JsonLines, line: bytes) -> RawRecord:
    """The record of a line of JSON; an attribute that is no string is kept as compact JSON, null is left out.

    Raises:
        RecordRefusedError: it gives no record.
    """
    if len(line) > MAX_LINE_BYTES:
        raise RecordRefusedError(f"The line has more than {MAX_LINE_BYTES} bytes.", reason="LINE_TOO_LONG")
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise RecordRefusedError(f"The line is not UTF-8 (byte {error.start}).", reason="NOT_DECODABLE") from error
    except (ValueError, RecursionError) as error:
        raise RecordRefusedError(f"The line is no JSON: {error}.", reason="INVALID_JSON") from error
    if not isinstance(value, dict):
        raise RecordRefusedError("The line is no JSON object.", reason="NOT_AN_OBJECT")
    attributes = {}
    for name in spec.attribute_fields:
        attribute = value.get(name)
        if attribute is not None:
            attributes[name] = attribute_text(attribute)
    record = RawRecord(source, _text(value, spec.text_field), attributes, _identity(value, spec.id_field))
    check_record(record)
    return record.identified()


def attribute_text(value: Any) -> str:
    """A JSON value as the text of an attribute."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _text(value: dict[str, Any], field: str) -> str:
    text = value.get(field)
    if text is None:
        raise RecordRefusedError(f"The field {field!r} is missing.", reason="MISSING_TEXT")
    if not isinstance(text, str):
        raise RecordRefusedError(f"The field {field!r} is no string.", reason="TEXT_NOT_A_STRING")
    return text


def _identity(value: dict[str, Any], field: str) -> str:
    if not field:
        return ""
    identity = value.get(field)
    if isinstance(identity, int) and not isinstance(identity, bool):
        return str(identity)
    if not isinstance(identity, str) or not identity:
        raise RecordRefusedError(
            f"The field {field!r}, which holds the record id, is missing or neither text nor a whole number.",
            reason="MISSING_ID",
        )
    return identity


def split_lines(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines without their ends, with their numbers from 1; blank ones are left out.

    Of a line beyond `MAX_LINE_BYTES` only the first bytes come, one more than that: it is known as too long, and
    memory stays bounded.
    """
    number, rest = 0, b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            if piece := _piece(number, line):
                yield number, piece
        rest = rest[: MAX_LINE_BYTES + 1]
    if piece := _piece(number + 1, rest):
        yield number + 1, piece


def _piece(number: int, line: bytes) -> bytes:
    if number == 1:
        line = line.removeprefix(_BOM)
    return line.strip()[: MAX_LINE_BYTES + 1]
