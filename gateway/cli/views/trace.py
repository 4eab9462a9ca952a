"""A trace as a tree of spans, and log lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.text import Text
from rich.tree import Tree
from tidemill.telemetry.v1.telemetry_service_pb2 import LogRecord, Span

from gateway.cli.views.text import moment
from gateway.formats import milliseconds

_LEVELS = {"error": "bold red", "critical": "bold red", "fatal": "bold red", "warning": "yellow", "warn": "yellow"}
_HOPS = {"server": "▸", "client": "◂", "producer": "»", "consumer": "«"}
_COLORS = ("cyan", "magenta", "green", "blue", "yellow", "bright_cyan", "bright_magenta", "bright_green")


def trace_tree(trace_id: str, spans: Sequence[Span], logs: Sequence[LogRecord]) -> RenderableType:
    """A tree of the spans, sorted by start, each with its service, duration, errors and log lines.

    A span whose parent is missing, for example of a caller that exports nothing, is a root. The times at the right
    count from the start of the first span.
    """
    ids = {span.span_id for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda s: s.start_time.ToNanoseconds()):
        children[span.parent_span_id if span.parent_span_id in ids else ""].append(span)
    lines: dict[str, list[LogRecord]] = defaultdict(list)
    for record in sorted(logs, key=lambda r: r.time.ToNanoseconds()):
        lines[record.span_id if record.span_id in ids else ""].append(record)
    services = sorted({span.service for span in spans})
    colors = {service: _COLORS[index % len(_COLORS)] for index, service in enumerate(services)}
    start = min((span.start_time.ToNanoseconds() for span in spans), default=0)
    end = max((span.start_time.ToNanoseconds() + span.duration.ToNanoseconds() for span in spans), default=0)
    failed = sum(span.error for span in spans)
    head = Text.assemble(
        ("trace ", "bright_black"),
        (trace_id, "bold"),
        f" · {milliseconds((end - start) / 1e9)} · {len(spans)} spans · {', '.join(services)}",
        (f" · {failed} failed", "bold red") if failed else "",
    )
    tree = Tree(head, guide_style="bright_black")
    # Without recursion: a trace may be deeper than Python's stack.
    pending: list[tuple[Tree, Span]] = [(tree, span) for span in reversed(children[""])]
    while pending:
        branch, span = pending.pop()
        node = branch.add(_span_line(span, start, colors))
        for record in lines[span.span_id]:
            node.add(log_line(record, with_time=False))
        for link in span.links:
            node.add(Text(f"↪ continues {link.partition('/')[0]}", "bright_black"))
        pending.extend((node, child) for child in reversed(children[span.span_id]))
    for record in lines[""]:
        tree.add(log_line(record, with_time=False))
    return tree


def _span_line(span: Span, start: int, colors: dict[str, str]) -> Text:
    offset = (span.start_time.ToNanoseconds() - start) / 1e9
    line = Text.assemble(
        (span.service, colors[span.service]),
        f" {_HOPS.get(span.kind, '·')} ",
        (span.name, "bold red" if span.error else "bold"),
        f"  {milliseconds(span.duration.ToNanoseconds() / 1e9)}",
        (f"  +{milliseconds(offset)}", "bright_black"),
    )
    if span.error:
        line.append(f"  ✗ {span.status_message}", "red")
    return line


def log_line(record: LogRecord, *, with_time: bool = True) -> Text:
    """One log line, with its stack trace below it."""
    style = _LEVELS.get(record.level, "bright_black" if record.level == "debug" else "")
    line = Text()
    if with_time:
        line.append(f"{moment(record.time):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " ", "bright_black")
    line.append(f"{record.level:<8}", style or "green")
    line.append(f"{record.service:<10} ", "cyan")
    line.append(record.message, style)
    if with_time and record.trace_id:
        line.append(f"  trace:{record.trace_id}", "bright_black")
    if record.stack_trace:
        line.append("\n" + record.stack_trace.rstrip(), "bright_black")
    return line


def in_order(records: Iterable[LogRecord]) -> list[LogRecord]:
    """Log lines, oldest first."""
    return sorted(records, key=lambda record: record.time.ToNanoseconds())
