"""`tidemill sources`: what the mesh collects by itself, and when."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from tidemill.ingest.v1.source_import_pb2 import CollectionSchedule, Import, SourcePolicy
from tidemill.ingest.v1.source_pb2 import Source
from tidemill.ingest.v1.source_service_pb2 import (
    CollectSourceRequest,
    DeleteSourceRequest,
    GetSourceRequest,
    ListSourcesRequest,
    PauseSourceRequest,
    PutSourceRequest,
    ResumeSourceRequest,
)

from gateway.cli.allowed_sources import source_uri
from gateway.cli.connection import Connection, connect
from gateway.cli.file_inputs import AllowOption, make_readable
from gateway.cli.import_view import imported, records
from gateway.cli.output import (
    EXIT_INTERRUPTED,
    AddressOption,
    JsonOption,
    as_json,
    plain_table,
    print_json,
    print_whole,
    program,
    stderr,
    stdout,
)
from gateway.cli.pages import pages
from gateway.cli.pipeline_file import PipelineFile, load_sources
from gateway.cli.resource_names import source_name
from gateway.cli.views.text import moment
from services.kit.errors import InvalidArgumentError
from services.kit.ids import new_id

_TIMEOUT_S = 120

SourceName = Annotated[str, typer.Argument(help="Name of a source.", show_default=False)]

sources = typer.Typer(
    help="What the mesh collects by itself: put, list, show, collect, pause, resume, delete.", no_args_is_help=True
)


@sources.command()
@sources.command("create", hidden=True)
def put(
    file: Annotated[
        Path, typer.Argument(help="A pipeline file, or one with nothing but `sources`.", show_default=False)
    ],
    only: Annotated[
        list[str] | None, typer.Option("--source", help="Only the source of this name.", show_default=False)
    ] = None,
    more: AllowOption = None,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Declares the sources of a file without running a pipeline; `collect` says when each is collected.

    Put again, a source gets the file's options and times; a pause stays. `tidemill run` declares those with `collect`
    and those that others push.
    """
    loaded = load_sources(file)
    names = [source.source for source in loaded.spec.sources]
    for name in only or ():
        if name not in names:
            raise InvalidArgumentError(f"{file} has no source {name!r}; it has {', '.join(names)}.")
    make_readable(loaded, more or (), address)
    found: list[Source] = []
    with connect(address) as connection:
        for number, spec in enumerate(loaded.spec.sources):
            if only and spec.source not in only:
                continue
            found.append(put_source(connection, loaded, number))
    _print_list(found, json_wanted)


def put_source(connection: Connection, file: PipelineFile, number: int) -> Source:
    """Declares a source of a file; returns it as it is now.

    Raises:
        InvalidArgumentError: names line and field of what is wrong with it.
    """
    request = PutSourceRequest(request_id=new_id(), spec=file.spec.sources[number])
    try:
        with connection.errors():
            answer = connection.sources.PutSource(request, metadata=connection.metadata, timeout=_TIMEOUT_S)
    except InvalidArgumentError as error:
        raise file.locate(error, f"sources[{number}].") from error
    return answer.source


@sources.command("list")
@sources.command("ls", hidden=True)
def list_sources(address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Lists the declared sources, with the state of their last import."""
    with connect(address) as connection:
        listed = pages(connection, connection.sources.ListSources, ListSourcesRequest(page_size=1000))
        found = [source for page in listed for source in page.sources]
    _print_list(found, json_wanted)


@sources.command()
def show(name: SourceName, address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Shows a source: what is pulled, when, its policy, and its newest collections."""
    with connect(address) as connection:
        request = GetSourceRequest(name=source_name(name))
        source = connection.sources.GetSource(request, metadata=connection.metadata, timeout=_TIMEOUT_S).source
    _show(source, json_wanted)


@sources.command()
def collect(
    name: SourceName,
    follow_it: Annotated[bool, typer.Option("--follow/--detach", help="Watch it to its end.")] = True,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Collects a source now. Exits with 1 if that fails."""
    console = stderr()
    with connect(address) as connection:
        request = CollectSourceRequest(request_id=new_id(), name=source_name(name))
        answer = connection.sources.CollectSource(request, metadata=connection.metadata, timeout=_TIMEOUT_S)
        found = answer.source_import
        if follow_it:
            try:
                found = imported(connection, found, console)
            except KeyboardInterrupt:
                console.print(f"\nYou stopped watching; {found.name} continues.", style="yellow")
                raise typer.Exit(EXIT_INTERRUPTED) from None
    if json_wanted:
        print_json(as_json(found))
    elif not follow_it:
        stdout().print(found.name)


@sources.command()
def pause(
    name: SourceName,
    reason: Annotated[str, typer.Option("--reason", help="Reason that is shown.", show_default=False)] = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Pulls nothing from a source until it is resumed; cycles learn from what was collected before."""
    with connect(address) as connection:
        request = PauseSourceRequest(request_id=new_id(), name=source_name(name), reason=reason)
        source = connection.sources.PauseSource(request, metadata=connection.metadata, timeout=_TIMEOUT_S).source
    _show(source, json_wanted)


@sources.command()
def resume(name: SourceName, address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Ends a pause."""
    with connect(address) as connection:
        request = ResumeSourceRequest(request_id=new_id(), name=source_name(name))
        source = connection.sources.ResumeSource(request, metadata=connection.metadata, timeout=_TIMEOUT_S).source
    _show(source, json_wanted)


@sources.command()
def delete(name: SourceName, address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Deletes a source and how far it was read; its collection is cancelled, its records stay."""
    with connect(address) as connection:
        request = DeleteSourceRequest(request_id=new_id(), name=source_name(name))
        source = connection.sources.DeleteSource(request, metadata=connection.metadata, timeout=_TIMEOUT_S).source
    if json_wanted:
        print_json(as_json(source))
    else:
        stdout().print(f"{source.name} is deleted; its records stay.")


def _print_list(found: list[Source], json_wanted: bool) -> None:
    if json_wanted:
        print_json([as_json(source) for source in found])
        return
    if not found:
        stdout().print(f"No source is declared; `{program()} sources put FILE` declares those of a file.")
        return
    table = plain_table()
    for column in ("source", "kind", "collected", "due", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("last import", overflow="fold")
    for source in found:
        cells = [source.spec.source, source.spec.WhichOneof("kind") or "", _when(source), _due(source)]
        table.add_row(*map(Text, [*cells, _state(source), _last(source)]))
    print_whole(table)


def _show(source: Source, json_wanted: bool) -> None:
    if json_wanted:
        print_json(as_json(source))
        return
    kind = source.spec.WhichOneof("kind") or ""
    rows = {
        "source": source.spec.source,
        kind: source_uri(source.spec),
        "collected": _when(source),
        "declared by": ", ".join(source.pipelines),
        "policy": _policy(source.spec.policy),
        "state": _state(source) + (f": {source.pause_reason}" if source.pause_reason else ""),
        "due": _due(source),
        "last import": _last(source),
    }
    table = plain_table()
    table.show_header = False
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows.items():
        if value:
            table.add_row(label, Text(value))
    print_whole(table)
    for item in source.collections:
        what = item.import_name or (item.failure.message if item.HasField("failure") else "being started")
        words = f"{_time(moment(item.order_time))}  {item.actor}  {what}{' (unchanged)' if item.reused else ''}"
        stdout().print(f"  {words}", style="bright_black", soft_wrap=True)


def _when(source: Source) -> str:
    if source.spec.HasField("pushed"):
        return "others push it"
    if not source.spec.HasField("collect"):
        return "by hand and by cycles"
    when: CollectionSchedule = source.spec.collect
    if when.schedule:
        return f"{when.schedule} ({when.time_zone})"
    minutes = when.every_minutes
    hours, days = minutes / 60, minutes / 1440
    for number, unit in ((days, "d"), (hours, "h")):
        if number >= 1 and number == int(number):
            return f"every {int(number)} {unit}"
    return f"every {minutes:g} min"


def _policy(policy: SourcePolicy) -> str:
    words = []
    for field, value in policy.ListFields():
        if field.enum_type is not None:
            value = field.enum_type.values_by_number[value].name.removeprefix(f"{field.name.upper()}_").lower()
        words.append(f"{field.name} {value}")
    return ", ".join(words)


def _due(source: Source) -> str:
    return _time(moment(source.due_time)) if source.HasField("due_time") else ""


def _state(source: Source) -> str:
    if source.spec.HasField("pushed"):
        return ""
    if source.paused:
        return "paused"
    if source.HasField("last_import") and source.last_import.state == Import.STATE_RUNNING:
        return "collecting"
    newest = source.collections[0] if source.collections else None
    return "failed" if newest is not None and newest.HasField("failure") else "waits"


def _last(source: Source) -> str:
    newest = source.collections[0] if source.collections else None
    if newest is not None and newest.HasField("failure"):
        return newest.failure.message
    if not source.HasField("last_import"):
        return ""
    last = source.last_import
    state = Import.State.Name(last.state).removeprefix("STATE_").lower()
    others = ((last.rejected_count, "refused"), (last.withdrawn_count, "gone"))
    words = [records(last.record_count), *(f"{count:,} {word}" for count, word in others if count)]
    why = [last.failure.message] if last.HasField("failure") else words
    return f"{_time(moment(last.update_time))} {state}: {', '.join(why)}"


def _time(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S}"
