"""Documents: one event to write, and the outcome of writing it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Document:
    """One log line or span, ready to be written.

    `id` is derived from the event, so that writing it again changes nothing.
    """

    index: str
    id: str
    source: bytes
    """A JSON object in the Elastic Common Schema's terms, UTF-8, on one line."""


class WriteStatus(Enum):
    """What became of a document that the store was given."""

    WRITTEN = "written"
    DUPLICATE = "duplicate"
    """It was there already."""
    REFUSED = "refused"
    """It never can be written."""
    BUSY = "busy"
    """It was not written now and may be later."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A document's status, with the reason if it was refused."""

    status: WriteStatus
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of the documents of one request; all others are safely written."""

    refused: int = 0
    reason: str = ""
    """Of the first that was refused."""
