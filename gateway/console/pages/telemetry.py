"""Logs and traces: searched as `tidemill logs` does, and a trace as its spans beside each other in time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from starlette.responses import Response
from tidemill.telemetry.v1.telemetry_service_pb2 import GetTraceRequest, SearchLogsRequest, Span

from gateway.console.view import Page, View
from gateway.figures.marks import span_bar
from gateway.formats import milliseconds

_LINES = 100
_SPANS = 500
_MAX_DEPTH = 12
"""Levels that are still indented."""
_TONES = {"error": "bad", "critical": "bad", "fatal": "bad", "warning": "warn", "warn": "warn"}


def tone_of(level: str) -> str:
    """The tone of a log line's level."""
    return _TONES.get(level, "idle")


@dataclass(frozen=True, slots=True)
class SpanRow:
    """A span in its place: `depth` levels below its root."""

    span: Span
    depth: int
    took: str
    bar: Markup


def waterfall(spans: Sequence[Span]) -> list[SpanRow]:
    """The spans of a trace, each below its parent, by their start; a span whose parent is missing is a root."""
    if not spans:
        return []
    ids = {span.span_id for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=_start):
        children[span.parent_span_id if span.parent_span_id in ids else ""].append(span)
    begin = min(_start(span) for span in spans)
    whole = max(_start(span) + span.duration.ToNanoseconds() for span in spans) - begin or 1
    rows: list[SpanRow] = []
    # Without recursion: a trace may be deeper than Python's stack.
    pending = [(span, 0) for span in reversed(children[""])]
    while pending and len(rows) < _SPANS:
        span, depth = pending.pop()
        offset, length = (_start(span) - begin) / whole, span.duration.ToNanoseconds() / whole
        took = milliseconds(span.duration.ToNanoseconds() / 1e9)
        rows.append(
            SpanRow(span, min(depth, _MAX_DEPTH), took, span_bar(offset, length, "bad" if span.error else "busy"))
        )
        pending += [(child, depth + 1) for child in reversed(children[span.span_id])]
    return rows


def _start(span: Span) -> int:
    return span.start_time.ToNanoseconds()


async def logs(view: View) -> Response:
    """The newest lines that match."""
    query = view.query("query").strip()
    request = SearchLogsRequest(query=query, page_size=_LINES, page_token=view.request.query_params.get("after", ""))
    found = await view.services.telemetry.SearchLogs(request)
    return view.page(
        "logs.html",
        query=query,
        lines=[(each, tone_of(each.level)) for each in found.records],
        total=found.total,
        older=found.next_page_token,
        after=view.next_token,
    )


async def trace(view: View) -> Response:
    """One trace with its log lines."""
    found = await view.services.telemetry.GetTrace(GetTraceRequest(trace_id=view.parameter("trace")))
    return view.page(
        "trace.html",
        trace_id=view.parameter("trace"),
        rows=waterfall(found.spans),
        count=len(found.spans),
        lines=[(each, tone_of(each.level)) for each in found.logs[:_SPANS]],
        truncated=found.truncated or len(found.spans) > _SPANS,
    )


PAGES = (
    Page("GET", "/logs", logs),
    Page("GET", "/traces/{trace}", trace),
)
