"""JSON from arbitrary producers: reports what Python's parser accepts silently."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class NotANumber:
    """NaN or Infinity, which some writers emit though JSON does not have it."""

    def __init__(self, written: str) -> None:
        self._written = written

    def __str__(self) -> str:
        return self._written


class _Object(dict[str, Any]):
    """An object with a duplicate name; the last value counts, as in every common parser."""

    twice: tuple[str, ...] = ()


def read_json(text: bytes | str) -> Any:
    """The value; numbers that are not finite become `NotANumber`, and integers of thousands of digits a text.

    Raises:
        ValueError: it is not JSON, or is nested too deep.
        UnicodeDecodeError: it is not in an encoding of JSON.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        text = text.removeprefix("\ufeff")
        try:
            return _READER.decode(text)
        except json.JSONDecodeError:
            raise
        except ValueError:
            # An integer of more digits than Python converts.
            return _READER_OF_LONG_INTEGERS.decode(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_value(text: str, begin: int) -> tuple[Any, int]:
    """The value that begins at a character, as `read_json` reads it, and where it ends.

    Raises:
        ValueError: it is not JSON, ends too early, or is nested too deep.
    """
    try:
        try:
            return _READER.raw_decode(text, begin)
        except json.JSONDecodeError:
            raise
        except ValueError:
            return _READER_OF_LONG_INTEGERS.raw_decode(text, begin)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def repeated_names(value: Mapping[str, Any]) -> tuple[str, ...]:
    """Duplicate names in an object that `read_json` returned."""
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


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_DIGITS else digits


_MAX_DIGITS = 1000
_READER_OF_LONG_INTEGERS = json.JSONDecoder(object_pairs_hook=_object, parse_constant=NotANumber, parse_int=_integer)
_READER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=NotANumber)
