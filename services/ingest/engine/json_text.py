"""JSON as strangers write it: what Python's reader lets pass silently is kept in sight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class NotANumber:
    """NaN or Infinity, which some writers put where JSON has no number for it."""

    def __init__(self, written: str) -> None:
        self._written = written

    def __str__(self) -> str:
        return self._written


class _Object(dict[str, Any]):
    """An object of which a name stood twice; the last value counts, as in every common reader."""

    twice: tuple[str, ...] = ()


def read_json(text: bytes | str) -> Any:
    """The value; where it is not finite a `NotANumber`.

    Raises:
        ValueError: it is not JSON, is nested too deep, or has a number of thousands of digits.
        UnicodeDecodeError: it is in none of the encodings of JSON.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        return _READER.decode(text.removeprefix("\ufeff"))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def repeated_names(value: Mapping[str, Any]) -> tuple[str, ...]:
    """Names that stood more than once in an object that `read_json` read."""
    return value.twice if isinstance(value, _Object) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    twice = [name for name, _ in pairs if name in seen or seen.add(name)]  # type: ignore[func-returns-value]  # None
    marked = _Object(found)
    marked.twice = tuple(dict.fromkeys(twice))
    return marked


_READER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=NotANumber)
