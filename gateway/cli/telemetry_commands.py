"""`tidemill logs`, `trace`, `traces`: logs and traces of the mesh, from Elasticsearch."""

from __future__ import annotations

import time
from typing import Annotated

import grpc
import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text
from tidemill.telemetry.v1.telemetry_service_pb2 import (
    GetTraceRequest,
    LogRecord,
    SearchLogsRequest,
    SearchTracesRequest,
)

from gateway.cli.connection import Connection, connect
from gateway.cli.durations import ago
from gateway.cli.output import (
    AddressOption,
    JsonOption,
    as_json,
    plain_table,
    print_json,
    print_json_line,
    print_whole,
    stderr,
    stdout,
)
from gateway.cli.pages import pages
from gateway.cli.patience import Patience
from gateway.cli.views.text import moment
from gateway.cli.views.trace import in_order, log_line, trace_tree
from gateway.formats import milliseconds

_POLL_S = 1.0
# Lines reach the index out of order; a line this late is still shown.
_OVERLAP_S = 10
_PAGE = 1000


def logs(
    query: Annotated[
        str,
        typer.Argument(help='Words and field:value pairs, such as "level:error service:training".', show_default=False),
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Maximum lines to show.", min=1, max=1000)] = 50,
    since: Annotated[str, typer.Option(help="Only lines newer than this, such as 30s, 15m, 2h, 1d.")] = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Searches the logs of every service, oldest of the found lines first."""
    start = ago(since, "--since") if since else None
    with connect(address) as connection:
        request = SearchLogsRequest(query=query, page_size=lines, start_time=start)
        found = connection.telemetry.SearchLogs(request, metadata=connection.metadata, timeout=30)
        _show(in_order(found.records), json_wanted)
        if not follow:
            if found.total > len(found.records):
                stderr().print(f"{len(found.records)} of {found.total:,} lines; -n shows more.", style="bright_black")
            return
        try:
            _follow(connection, query, in_order(found.records), json_wanted, more=found.total > len(found.records))
        except KeyboardInterrupt:
            return


def _show(records: list[LogRecord], json_wanted: bool) -> None:
    console = stdout()
    for record in records:
        if json_wanted:
            print_json_line(as_json(record))
        else:
            console.print(log_line(record), soft_wrap=True)


def _follow(connection: Connection, query: str, shown: list[LogRecord], json_wanted: bool, *, more: bool) -> None:
    """Shows new lines; `more` means that older lines were found, which are not shown."""
    oldest = shown[0].time.ToNanoseconds() if shown and more else 0
    seen = {record.SerializeToString(deterministic=True): record.time.ToNanoseconds() for record in shown}
    newest = max(seen.values(), default=time.time_ns())
    patience = Patience("tidemill logs --follow")
    while True:
        time.sleep(_POLL_S)
        start = Timestamp()
        start.FromNanoseconds(max(oldest, newest - _OVERLAP_S * 10**9))
        try:
            found = _since(connection, query, start)
        except grpc.RpcError as error:
            if not patience.lost:
                stderr().print("The mesh does not answer; retrying …", style="yellow")
            patience.failed(error)
            continue
        patience.restored()
        fresh = [record for record in found if record.SerializeToString(deterministic=True) not in seen]
        _show(in_order(fresh), json_wanted)
        seen |= {record.SerializeToString(deterministic=True): record.time.ToNanoseconds() for record in fresh}
        newest = max([newest, *seen.values()])
        seen = {key: at for key, at in seen.items() if at >= newest - 2 * _OVERLAP_S * 10**9}


def _since(connection: Connection, query: str, start: Timestamp) -> list[LogRecord]:
    """Every line from that time on."""
    request = SearchLogsRequest(query=query, page_size=_PAGE, start_time=start)
    return [record for page in pages(connection, connection.telemetry.SearchLogs, request) for record in page.records]


def trace(
    trace_id: Annotated[
        str, typer.Argument(help="Trace id, 32 hexadecimal digits, as in x-trace-id.", show_default=False)
    ],
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Shows one trace as a tree of spans with services, durations, errors and log lines."""
    with connect(address) as connection:
        request = GetTraceRequest(trace_id=trace_id.lower())
        found = connection.telemetry.GetTrace(request, metadata=connection.metadata, timeout=30)
    if json_wanted:
        print_json(as_json(found))
        return
    print_whole(trace_tree(trace_id.lower(), found.spans, found.logs))
    if found.truncated:
        stderr().print("The trace is larger than one answer; this is its beginning.", style="yellow")


def traces(
    query: Annotated[str, typer.Argument(help='Such as "service:gateway error:true".', show_default=False)] = "",
    lines: Annotated[int, typer.Option("--lines", "-n", help="Maximum traces to show.", min=1, max=1000)] = 20,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Searches traces by the span with which they began or entered the mesh, newest first."""
    with connect(address) as connection:
        request = SearchTracesRequest(query=query, page_size=lines)
        found = connection.telemetry.SearchTraces(request, metadata=connection.metadata, timeout=30).traces
    if json_wanted:
        print_json([as_json(item) for item in found])
        return
    table = plain_table()
    for column in ("trace", "when", "service", "root", "took"):
        table.add_column(column, no_wrap=column != "root", justify="right" if column == "took" else "left")
    for item in found:
        root = item.root
        table.add_row(
            item.trace_id,
            f"{moment(root.start_time):%H:%M:%S}",
            root.service,
            Text(root.name, "red" if root.error else ""),
            milliseconds(root.duration.ToNanoseconds() / 1e9),
        )
    if found:
        print_whole(table)
    else:
        stdout().print("No trace matches.")
