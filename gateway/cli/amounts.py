"""Amounts as people write them on the command line: bytes, and times of an answer."""

from __future__ import annotations

import re

from services.kit.errors import InvalidArgumentError

_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_MS = {"MS": 1.0, "S": 1000.0}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def byte_count(text: str, option: str, *, plain: bool = False) -> int:
    """The number of bytes in `80GB` or `80 GiB`, with `plain` also in `1000000`; 0 if empty.

    Raises:
        InvalidArgumentError: it is not an amount; names the option.
    """
    return int(_amount(text, option, {**_BYTES, "": 1} if plain else _BYTES, "an amount of memory", "80GB or 64MiB"))


def milliseconds(text: str, option: str) -> float:
    """Milliseconds in `20ms` or `1.5s`; 0 if empty.

    Raises:
        InvalidArgumentError: it is not a time, or not above zero; names the option.
    """
    return _amount(text, option, _MS, "a time", "20ms or 1.5s")


def _amount(text: str, option: str, units: dict[str, float] | dict[str, int], what: str, example: str) -> float:
    if not text:
        return 0
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        above = ", which must be above zero" if text.strip().startswith("-") else ""
        raise InvalidArgumentError(f"{option}: {text!r} is not {what}{above}; write it as {example}.")
    number, unit = float(match.group(1)), match.group(2).upper()
    if not unit and unit not in units:
        raise InvalidArgumentError(f"{option}: {text!r} has no unit; write it as {example}.")
    if unit not in units or not number:
        raise InvalidArgumentError(f"{option}: {text!r} is not {what} above zero; write it as {example}.")
    return number * units[unit]
