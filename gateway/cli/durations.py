"""Durations as people write them on the command line."""

from __future__ import annotations

import re
import time
from datetime import timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import InvalidArgumentError

_PATTERN = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST = timedelta(days=36500)


def duration(text: str, option: str) -> timedelta:
    """Reads `30s`, `15m`, `2h` or `1d`.

    Raises:
        InvalidArgumentError: it is not a duration, or longer than a hundred years; names the option.
    """
    found = _PATTERN.fullmatch(text)
    span = timedelta(seconds=float(found.group(1)) * _UNITS[found.group(2)]) if found else None
    if span is None or span > _LONGEST:
        raise InvalidArgumentError(f"{option} {text!r} is not a duration; write 30s, 15m, 2h or 1d.")
    return span


def ago(text: str, option: str) -> Timestamp:
    """The time that lies a duration in the past.

    Raises:
        InvalidArgumentError: see `duration`.
    """
    stamp = Timestamp()
    stamp.FromNanoseconds(max(0, time.time_ns() - int(duration(text, option).total_seconds() * 1e9)))
    return stamp
