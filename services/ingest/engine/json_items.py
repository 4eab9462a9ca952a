"""JSON objects of a file, from an array or one after another, in bounded memory; no I/O."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from services.ingest.domain.record import RecordRefusedError
from services.ingest.engine.file_format import BadContentError
from services.ingest.engine.members import MAX_LINE_BYTES
from services.kit.json_text import read_value

_BETWEEN = " \t\r\n,"


def split_items(chunks: Iterable[bytes]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects, each with the line in which it begins.

    The file is an array of objects, or objects one after another (JSON lines).

    Raises:
        BadContentError: it is not JSON from some place on, or has something else than objects.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, line, in_array, ended, first = "", 1, False, False, True
    for chunk, last in _with_last(chunks):
        try:
            text += decoder.decode(chunk, final=last)
        except UnicodeDecodeError as error:
            raise BadContentError("NOT_DECODABLE", f"it is not UTF-8: {error.reason}") from error
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        at = 0
        while True:
            while at < len(text) and text[at] in _BETWEEN:
                line += text[at] == "\n"
                at += 1
            if at == len(text):
                break
            if ended:
                raise BadContentError("INVALID_JSON", f"line {line}: there is more after the end of the array")
            if text[at] in "[]":
                if (text[at] == "[") == in_array:
                    raise BadContentError("INVALID_JSON", f"line {line}: expected an object, found {text[at]!r}")
                in_array, ended = text[at] == "[", text[at] == "]"
                at += 1
                continue
            if text[at] != "{":
                raise BadContentError("INVALID_JSON", f"line {line}: expected an object, found {text[at : at + 20]!a}")
            try:
                value, end = read_value(text, at)
            except ValueError as error:
                # It may continue in the next chunk.
                if last or len(text) - at > MAX_LINE_BYTES:
                    raise BadContentError("INVALID_JSON", f"line {line}: not valid JSON: {error}") from error
                break
            yield line, value
            line += text.count("\n", at, end)
            at = end
        text = text[at:]
    if in_array:
        raise BadContentError("INVALID_JSON", f"line {line}: the file ends within its array")


def _with_last(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    for chunk in chunks:
        yield chunk, False
    yield b"", True


def member(value: Mapping[str, Any], name: str, kind: type, place: str = "") -> Any:
    """A member of an object.

    Raises:
        RecordRefusedError: it is missing, or is of another kind.
    """
    found = value.get(name)
    if not isinstance(found, kind):
        words = "text" if kind is str else "a list" if kind is list else "an object"
        raise RecordRefusedError(f"{place}{name} must be {words}.", reason="WRONG_MEMBER")
    return found
