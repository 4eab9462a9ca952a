"""`tidemill dlq`: refused messages, why they were refused, and what is done about them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Annotated, Any

import typer
from rich.text import Text
from tidemill.ingest.v1.dead_letter_pb2 import DeadLetter
from tidemill.ingest.v1.dead_letter_service_pb2 import (
    DeadLetterFilter,
    DeadLetterOutcome,
    DropDeadLettersRequest,
    GetDeadLetterRequest,
    ListDeadLettersRequest,
    ReplayDeadLettersRequest,
)

from gateway.cli.connection import Connection, connect
from gateway.cli.durations import ago
from gateway.cli.output import (
    EXIT_FAILED,
    AddressOption,
    JsonOption,
    as_json,
    plain_table,
    print_json,
    print_whole,
    stdout,
)
from gateway.cli.pages import pages
from gateway.cli.resource_names import dead_letter_name
from gateway.cli.views.text import moment
from services.kit.errors import InvalidArgumentError
from services.kit.ids import new_id

_AT_ONCE = 100
_TIMEOUT_S = 120
_SHOWN_CHARACTERS = 2000


class State(Enum):
    """Which letters `list` shows."""

    OPEN = "open"
    REPLAYED = "replayed"
    DROPPED = "dropped"
    ALL = "all"


Reason = Annotated[str, typer.Option(help="Code of the refusal, such as INVALID_JSON.", show_default=False)]
Service = Annotated[str, typer.Option(help="Service that refused them.", show_default=False)]
Topic = Annotated[str, typer.Option(help="Topic that they came from.", show_default=False)]
OfImport = Annotated[str, typer.Option("--import", help="imports/IMPORT that they came with.", show_default=False)]
Since = Annotated[str, typer.Option(help="Refused within this time, such as 2h or 7d.", show_default=False)]
Until = Annotated[str, typer.Option(help="Refused longer ago than this.", show_default=False)]
Names = Annotated[list[str] | None, typer.Argument(help="Numbers that `list` shows.", show_default=False)]
Everything = Annotated[bool, typer.Option("--all", help="All that are open.")]

dlq = typer.Typer(help="Refused messages (dead letters): list, show, replay, drop.", no_args_is_help=True)


@dlq.command("list")
@dlq.command("ls", hidden=True)
def list_letters(
    reason: Reason = "",
    service: Service = "",
    topic: Topic = "",
    import_name: OfImport = "",
    since: Since = "",
    until: Until = "",
    state: Annotated[State, typer.Option(help="State of the dead letters.")] = State.OPEN,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Maximum lines to show.", min=1)] = 50,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Lists refused messages, newest first."""
    wanted = _filter(reason, service, topic, import_name, since, until, state)
    found: list[DeadLetter] = []
    with connect(address) as connection:
        request = ListDeadLettersRequest(filter=wanted, page_size=min(lines, 500))
        for page in pages(connection, connection.dead_letters.ListDeadLetters, request):
            found += page.dead_letters
            open_count = page.open_count
            if len(found) >= lines:
                break
    found = found[:lines]
    if json_wanted:
        print_json({"dead_letters": [as_json(letter) for letter in found], "open_count": open_count})
        return
    if found:
        table = plain_table()
        for column in ("letter", "refused", "by", "from", "reason", *(["state"] if state is State.ALL else [])):
            table.add_column(column, no_wrap=True)
        table.add_column("message", overflow="fold")
        for letter in found:
            cells = [_number(letter), f"{moment(letter.refuse_time):%m-%d %H:%M:%S}", letter.service, _from(letter)]
            cells += [letter.reason, *([_state(letter)] if state is State.ALL else []), letter.message]
            table.add_row(*map(Text, cells))
        print_whole(table)
    stdout().print(f"{len(found):,} shown; {open_count:,} open in all.", style="bright_black")


@dlq.command()
def show(
    name: Annotated[str, typer.Argument(help="Number that `list` shows.", show_default=False)],
    raw: Annotated[bool, typer.Option("--raw", help="Write the message's bytes, at most 64 KiB, and nothing else.")] = (
        False
    ),
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Shows a refused message as it arrived, and why it was refused."""
    with connect(address) as connection:
        request = GetDeadLetterRequest(name=dead_letter_name(name))
        answer = connection.dead_letters.GetDeadLetter(request, metadata=connection.metadata, timeout=_TIMEOUT_S)
    letter = answer.dead_letter
    if raw:
        sys.stdout.buffer.write(letter.content)
        return
    if json_wanted:
        print_json(as_json(letter))
        return
    size = f"{letter.size_bytes:,} bytes" + (", only the beginning is kept" if letter.truncated else "")
    decided = f" by {letter.actor}, {moment(letter.decide_time):%Y-%m-%d %H:%M}" if letter.actor else ""
    rows = {
        "state": _state(letter) + decided,
        "refused": f"{moment(letter.refuse_time):%Y-%m-%d %H:%M:%S} by {letter.service}",
        "from": f"{letter.topic}, partition {letter.partition}, offset {letter.offset}"
        if letter.topic
        else f"{letter.location} ({letter.import_name})",
        "reason": letter.reason,
        "message": letter.message,
        "key": _text(letter.key),
        **{f"header {name}": _text(value) for name, value in sorted(letter.headers.items())},
        "size": size,
    }
    table = plain_table()
    table.show_header = False
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows.items():
        if value:
            table.add_row(label, Text(value))
    print_whole(table)
    text = _text(letter.content)
    more = "\n…" if len(text) > _SHOWN_CHARACTERS else ""
    stdout().print(f"\n{text[:_SHOWN_CHARACTERS]}{more}", soft_wrap=True)


@dlq.command()
def replay(
    names: Names = None,
    reason: Reason = "",
    service: Service = "",
    topic: Topic = "",
    import_name: OfImport = "",
    since: Since = "",
    until: Until = "",
    everything: Everything = False,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Sends refused messages to their topics again, under the same ids: nothing counts twice.

    Correct first what made them be refused. Exits with 1 if one cannot be replayed.
    """
    wanted = _filter(reason, service, topic, import_name, since, until, State.OPEN)
    with connect(address) as connection:
        letters = _chosen(connection, names, wanted, everything)
        call, make = connection.dead_letters.ReplayDeadLetters, ReplayDeadLettersRequest
        _report(_decide(connection, letters, call, make), "replayed", json_wanted)


@dlq.command()
def drop(
    names: Names = None,
    reason: Reason = "",
    service: Service = "",
    topic: Topic = "",
    import_name: OfImport = "",
    since: Since = "",
    until: Until = "",
    everything: Everything = False,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Marks refused messages as not needed; `replay` with their numbers still sends them.

    Exits with 1 if one cannot be dropped.
    """
    wanted = _filter(reason, service, topic, import_name, since, until, State.OPEN)
    with connect(address) as connection:
        letters = _chosen(connection, names, wanted, everything)
        call, make = connection.dead_letters.DropDeadLetters, DropDeadLettersRequest
        _report(_decide(connection, letters, call, make), "dropped", json_wanted)


def _chosen(
    connection: Connection, names: Sequence[str] | None, wanted: DeadLetterFilter, everything: bool
) -> Sequence[str]:
    """Names of the letters to decide about, the oldest first; of several ways to choose exactly one is given."""
    filtered = wanted != DeadLetterFilter(state=DeadLetter.STATE_OPEN)
    if sum((bool(names), filtered, everything)) != 1:
        raise InvalidArgumentError("Give numbers of letters, or a filter such as --reason, or --all.")
    if names:
        return list(dict.fromkeys(map(dead_letter_name, names)))
    request = ListDeadLettersRequest(filter=wanted, page_size=500)
    listed = pages(connection, connection.dead_letters.ListDeadLetters, request)
    return [letter.name for page in listed for letter in page.dead_letters][::-1]


def _decide(
    connection: Connection, names: Sequence[str], call: Callable[..., Any], make: Callable[..., Any]
) -> Iterator[DeadLetterOutcome]:
    for start in range(0, len(names), _AT_ONCE):
        request = make(request_id=new_id(), names=names[start : start + _AT_ONCE])
        yield from call(request, metadata=connection.metadata, timeout=_TIMEOUT_S).outcomes


def _report(outcomes: Iterator[DeadLetterOutcome], done: str, json_wanted: bool) -> None:
    found = list(outcomes)
    refused = [outcome for outcome in found if outcome.refused_reason]
    if json_wanted:
        print_json([as_json(outcome) for outcome in found])
    else:
        stdout().print(f"{len(found) - len(refused):,} {done}.")
        for outcome in refused:
            stdout().print(f"  {outcome.refused_reason}: {outcome.refused_message}", soft_wrap=True)
    if refused:
        raise typer.Exit(EXIT_FAILED)


def _filter(
    reason: str, service: str, topic: str, import_name: str, since: str, until: str, state: State
) -> DeadLetterFilter:
    wanted = DeadLetterFilter(reason=reason, service=service, topic=topic, import_name=import_name)
    if state is not State.ALL:
        wanted.state = DeadLetter.State.Value(f"STATE_{state.name}")
    if since:
        wanted.since.CopyFrom(ago(since, "--since"))
    if until:
        wanted.until.CopyFrom(ago(until, "--until"))
    return wanted


def _number(letter: DeadLetter) -> str:
    return letter.name.rpartition("/")[2]


def _from(letter: DeadLetter) -> str:
    return f"{letter.topic}[{letter.partition}]@{letter.offset}" if letter.topic else letter.import_name


def _state(letter: DeadLetter) -> str:
    return DeadLetter.State.Name(letter.state).removeprefix("STATE_").lower()


def _text(data: bytes) -> str:
    """Bytes as a terminal may show them: no control characters but line ends and tabs."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
