"""Finds log lines and traces."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.kit.errors import not_found
from services.telemetry.app.ports import EventSearch, Hit, Search
from services.telemetry.domain.days import Signal
from services.telemetry.domain.paging import decode_token, encode_token

MAX_TRACE_DOCUMENTS = 10_000
_MAX_PAGE_BYTES = 16 * 1024 * 1024
"""Characters of one page: a character takes up to four bytes, and a gRPC response at most 64 MiB."""
Source = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of hits."""

    sources: Sequence[Source]
    next_token: str
    total: int


@dataclass(frozen=True, slots=True)
class Trace:
    """The spans sorted by start, and the log lines sorted by time."""

    spans: Sequence[Source]
    logs: Sequence[Source]
    truncated: bool


class SearchService:
    """The use cases of searching."""

    def __init__(self, events: EventSearch) -> None:
        self._events = events

    async def logs(self, query: str, start_ns: int | None, end_ns: int | None, size: int, token: str) -> Page:
        """Log lines that match, newest first.

        Raises:
            InvalidArgumentError: the query or the token is wrong.
        """
        search = Search(Signal.LOGS, query=query, start_ns=start_ns, end_ns=end_ns, size=size)
        return await self._page(search, token)

    async def traces(self, query: str, size: int, token: str) -> Page:
        """The matching spans among those with which a trace begins or enters the mesh, newest first.

        Raises:
            InvalidArgumentError: the query or the token is wrong.
        """
        return await self._page(Search(Signal.TRACES, query=query, entries_only=True, size=size), token)

    async def trace(self, trace_id: str) -> Trace:
        """The stored spans and log lines of a trace.

        Raises:
            NotFoundError: there are none, or none yet.
        """
        search = Search(Signal.TRACES, trace_id=trace_id, newest_first=False, size=MAX_TRACE_DOCUMENTS)
        spans, logs = await asyncio.gather(
            self._events.find(search), self._events.find(replace(search, signal=Signal.LOGS))
        )
        if not spans.hits and not logs.hits:
            raise not_found(
                "trace",
                trace_id,
                "Spans and log lines arrive some seconds late: try again, unless the trace was not sampled "
                "(TIDEMILL_TRACES_PER_S; its traceparent ends with -00) or is older than the days that are kept.",
            )
        return Trace(
            spans=[hit.source for hit in spans.hits],
            logs=[hit.source for hit in logs.hits],
            truncated=spans.total > len(spans.hits) or logs.total > len(logs.hits),
        )

    async def _page(self, search: Search, token: str) -> Page:
        asked = (search.signal.value, search.query, str(search.start_ns), str(search.end_ns))
        after = decode_token(token, asked) if token else ()
        # One more item than requested shows whether there is a next page.
        found = await self._events.find(replace(search, size=search.size + 1, after=after))
        hits = _fitting(found.hits[: search.size])
        more = len(found.hits) > len(hits)
        return Page([hit.source for hit in hits], encode_token(hits[-1].sort, asked) if more else "", found.total)


def _fitting(hits: Sequence[Hit]) -> Sequence[Hit]:
    """As many lines as fit into a response, but at least one; the next page continues after them."""
    size = 0
    for number, hit in enumerate(hits):
        size += len(repr(hit.source))
        if number and size > _MAX_PAGE_BYTES:
            return hits[:number]
    return hits
