"""Times and texts as a terminal shows them."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len, set_cell_size


def moment(stamp: Timestamp) -> datetime:
    """A timestamp in this machine's time zone."""
    return stamp.ToDatetime(UTC).astimezone()


def shorten(text: str, width: int) -> str:
    """One line of at most `width` columns; a Chinese character takes two."""
    line = " ".join(text.split())
    return line if cell_len(line) <= width else set_cell_size(line, max(1, width - 1)).rstrip() + "…"
