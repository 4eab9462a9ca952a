"""Documents: one event to write, and the outcome of writing it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Document:
    """One log line or span, ready to be written.

    `id` is derived from the event, so that writing the event again changes nothing.
    """

    index: str
    id: str
    source: bytes
    """A JSON object on one line, in UTF-8, with the names of the Elastic Common Schema."""


class WriteStatus(Enum):
    """The outcome of writing a document."""

    WRITTEN = "written"
    DUPLICATE = "duplicate"
    """It already existed."""
    REFUSED = "refused"
    """It can never be written."""
    BUSY = "busy"
    """It was not written now; a retry may succeed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A document's status, with the reason if it was refused."""

    status: WriteStatus
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The refused documents of one request; all others are written."""

    refused: int = 0
    reason: str = ""
    """The reason for the first refusal."""
