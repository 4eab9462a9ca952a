"""The console's pages of logs and traces, from real messages."""

from __future__ import annotations

import pytest
from tidemill.telemetry.v1.telemetry_service_pb2 import LogRecord, Span

from gateway.console.pages.telemetry import tone_of, waterfall
from tests.unit.gateway.console_pages import CHINESE, HOSTILE, LONG, rendered, text_of


def span(name: str, parent: str, start: int, milliseconds: int, **more: str | bool) -> Span:
    found = Span(span_id=name, parent_span_id=parent, name=name, service="gateway", **more)  # type: ignore[arg-type]
    found.start_time.FromMilliseconds(1_790_000_000_000 + start)
    found.duration.FromMilliseconds(milliseconds)
    return found


def trace_page(spans: list[Span], lines: list[LogRecord]) -> str:
    shown = [(line, tone_of(line.level)) for line in lines]
    values = {"rows": waterfall(spans), "count": len(spans), "lines": shown, "truncated": False}
    return rendered("trace.html", trace_id="ab" * 16, **values)


def test_spans_stand_below_their_parents_by_their_start() -> None:
    rows = waterfall([span("c", "b", 30, 10), span("b", "a", 20, 30), span("d", "gone", 60, 40), span("a", "", 0, 100)])
    assert [(row.span.name, row.depth, row.took) for row in rows] == [
        ("a", 0, "100.0 ms"),
        ("b", 1, "30.0 ms"),
        ("c", 2, "10.0 ms"),
        ("d", 0, "40.0 ms"),
    ]
    assert 'x="0.0" y="0" width="380.0"' in rows[0].bar


def test_odd_traces_are_pages() -> None:
    assert waterfall([]) == []
    assert len(waterfall([span("a", "a", 0, 0)])) <= 1  # its own parent
    deep = waterfall([span(f"s{n}", f"s{n - 1}", n, 1) for n in range(3000)])
    assert (len(deep), deep[-1].depth) == (500, 12)
    assert "0 spans" in trace_page([], [])


@pytest.mark.parametrize("text", [HOSTILE, LONG, CHINESE])
def test_what_was_logged_stays_a_text(text: str) -> None:
    line = LogRecord(level="error", service=text, message=text, stack_trace=text, trace_id="ab" * 16)
    values = {"query": text, "lines": [(line, "bad")], "total": 1200, "older": text, "after": text}
    page = rendered("logs.html", **values)
    assert text_of(page).count(text) == 3
    assert "1,200 lines match." in text_of(page)
    failed = span("a", "", 0, 1, error=True, status_message=text)
    assert text_of(trace_page([failed], [line])).count(text) == 4
