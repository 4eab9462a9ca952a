"""Turns pieces of sources, a text file or a line of JSON, into records, or refuses them with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from services.ingest.domain.record import MAX_TEXT_BYTES, RawRecord, RecordRefusedError, check_record, is_record_id
from services.ingest.domain.source_import import PATH_ATTRIBUTE, CsvFiles, JsonLines, TextFolder
from services.ingest.engine.attributes import Attributes
from services.ingest.engine.json_text import read_json, repeated_names
from services.kit.ids import sha256_hex

# A line may contain much besides the text; this bounds the memory for it.
MAX_LINE_BYTES = 4 * 1024 * 1024
# No common text encoding needs more than four times the bytes that UTF-8 needs.
MAX_FILE_BYTES = 4 * MAX_TEXT_BYTES
_BOM = b"\xef\xbb\xbf"
_GUESSED_FROM_BYTES = 4096


def record_of_file(source: str, spec: TextFolder, path: str, folder: str, content: bytes) -> RawRecord:
    """The record of a text file.

    Args:
        source: the record's source name.
        spec: the folder's spec.
        path: the file's path below the folder.
        folder: name of the folder that contains the file.
        content: the file, or its beginning if it is longer than `MAX_FILE_BYTES`.

    Raises:
        RecordRefusedError: it is not a valid record.
    """
    if len(content) > MAX_FILE_BYTES:
        raise RecordRefusedError(
            f"The file has more than {MAX_FILE_BYTES} bytes; the limit of a record's text is {MAX_TEXT_BYTES}.",
            reason="TEXT_TOO_LONG",
        )
    attributes = Attributes()
    attributes.add(PATH_ATTRIBUTE, path)
    if spec.folder_attribute:
        attributes.add(spec.folder_attribute, folder)
    record = RawRecord(source, _decode(content, spec.encoding), attributes.result())
    check_record(record)
    return record.identified()


def _decode(content: bytes, encoding: str) -> str:
    try:
        # The byte order mark of some UTF-8 files is not part of the text.
        return content.removeprefix(_BOM).decode(encoding)
    except UnicodeError as error:
        guess = _guess_encoding(content)
        hint = f"; it looks like {guess}" if guess else ""
        # Some codecs (idna, for example) do not say where.
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
    """The record of a line of JSON. Its attributes are the members that the spec names, or all of them.

    Raises:
        RecordRefusedError: it is not a valid record; the message names the field or column.
    """
    return record_of_members(source, spec, _object_of(line))


def record_of_members(source: str, spec: JsonLines | CsvFiles, value: Mapping[str, Any]) -> RawRecord:
    """The record of named members, of an object or of a row; see `record_of_line`."""
    for name in repeated_names(value):
        if name in (spec.text_field, spec.id_field):
            raise RecordRefusedError(f"The field {name!r} occurs twice; remove one.", reason="FIELD_TWICE")
    text, attributes = _text(value, spec.text_field), Attributes()
    for name in spec.attribute_fields or [name for name in value if name not in (spec.text_field, spec.id_field)]:
        if name in repeated_names(value):
            attributes.note(f"{name}: occurs twice; the last one is kept")
        attributes.add(name, value[name] if name in value else _member(value, name))
    record_id = _identity(value, spec.id_field, attributes)
    record = RawRecord(source, text, attributes.result(), record_id)
    check_record(record)
    return record.identified()


def _object_of(line: bytes) -> dict[str, Any]:
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


def _member(value: Mapping[str, Any], path: str) -> Any:
    """A member by its name, else by its path with dots."""
    if path in value:
        return value[path]
    inner: Any = value
    for name in path.split("."):
        if not isinstance(inner, Mapping) or name not in inner:
            return None
        inner = inner[name]
    return inner


def _text(value: Mapping[str, Any], field: str) -> str:
    text = value.get(field)
    if text is None:
        raise RecordRefusedError(f"The field {field!r} is missing.", reason="MISSING_TEXT")
    if not isinstance(text, str):
        raise RecordRefusedError(f"The field {field!r} is not a string.", reason="TEXT_NOT_A_STRING")
    return text


def _identity(value: Mapping[str, Any], field: str, attributes: Attributes) -> str:
    if not field:
        return ""
    identity = value.get(field)
    if isinstance(identity, int) and not isinstance(identity, bool):
        return str(identity)
    if not isinstance(identity, str) or not identity:
        raise RecordRefusedError(
            f"The field {field!r}, which holds the record id, is missing, or is neither text nor an integer.",
            reason="MISSING_ID",
        )
    return fitted_id(identity, field, attributes)


def fitted_id(identity: str, name: str, attributes: Attributes) -> str:
    """A record id from the producer's identifier; one that is not valid is kept as an attribute instead."""
    if is_record_id(identity):
        return identity
    attributes.add(name, identity)
    attributes.note(f"{name}: not a valid record id (A-Z a-z 0-9 . _ : / -, at most 128); its digest is used instead")
    return "id_" + sha256_hex(identity.encode("utf-8", "surrogatepass"))[:32]


def split_lines(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines without their ends, numbered from 1, without blank ones.

    A line beyond `MAX_LINE_BYTES` is cut one byte after the limit, so that it is recognised as too long while
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
