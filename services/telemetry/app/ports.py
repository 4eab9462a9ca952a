"""What the use cases need from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.telemetry.domain.days import Signal
from services.telemetry.domain.document import Document, Outcome


class DocumentStore(Protocol):
    """Where documents are written."""

    async def write(self, documents: Sequence[Document]) -> Sequence[Outcome]:
        """Writes documents durably.

        Returns:
            One outcome for each, in order.

        Raises:
            UnavailableError: the store wrote none, or its answer is unknown; the same documents may be written again.
        """
        ...


class DailyIndices(Protocol):
    """The stored indices, one per day and signal."""

    async def names(self) -> Sequence[str]:
        """Names of all our indices.

        Raises:
            UnavailableError: the store does not answer.
        """
        ...

    async def drop(self, name: str) -> None:
        """Deletes an index with its documents; does nothing if it is gone.

        Raises:
            UnavailableError: the store does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Search:
    """A search among the events of one signal."""

    signal: Signal
    query: str = ""
    """The query in Lucene's syntax; all events when empty."""
    trace_id: str = ""
    entries_only: bool = False
    """Only spans with which a trace begins or enters the mesh."""
    start_ns: int | None = None
    end_ns: int | None = None
    newest_first: bool = True
    size: int = 50
    after: Sequence[str] = ()
    """Sort values of the hit before the first one."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One event that was found, with the dotted names of the Elastic Common Schema."""

    source: Mapping[str, Any]
    sort: Sequence[str]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of a search."""

    hits: Sequence[Hit] = field(default_factory=tuple)
    total: int = 0


class EventSearch(Protocol):
    """Searches stored documents."""

    async def find(self, search: Search) -> SearchResult:
        """Searches.

        Raises:
            InvalidArgumentError: the query cannot be parsed, or does not fit the types of its fields.
            UnavailableError: the store does not answer.
        """
        ...


class IntakeObserver(Protocol):
    """Observes the intake, for metrics."""

    def settled(self, signal: str, status: str, count: int) -> None:
        """`count` documents of a signal got this status."""
        ...

    def queued(self, size: int) -> None:
        """`size` bytes are waiting to be written."""
        ...

    def bulk(self, seconds: float) -> None:
        """One bulk took `seconds`."""
        ...
