"""Where the command line writes: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console, RenderableType
from rich.table import Table

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address", "-a", envvar="TIDEMILL_ADDRESS", help="host:port of the gateway's gRPC API.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

_FILE_WIDTH = 1000

EXIT_FAILED = 1
EXIT_REJECTED = 3
EXIT_INTERRUPTED = 130


def program() -> str:
    """How to call this command: by name if it is on the PATH, else by its path."""
    return _from_here(Path(sys.argv[0]).absolute())


def python() -> str:
    """How to call the Python that runs this command."""
    return _from_here(Path(sys.executable))


def _from_here(path: Path) -> str:
    found = shutil.which(path.name)
    if found and Path(found).absolute() == path:
        return path.name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# Without markup and emoji codes: in a caller's text, label or message, "[/b]" or ":smile:" is just text.


def stdout(width: int | None = None) -> Console:
    """For results; as wide as the terminal, or as given."""
    return Console(highlight=False, markup=False, emoji=False, width=width)


def print_whole(what: RenderableType) -> None:
    """Prints a table or tree: fitted to a terminal, but never cut in a file or pipe."""
    stdout(None if sys.stdout.isatty() else _FILE_WIDTH).print(what, soft_wrap=not isinstance(what, Table))


def plain_table() -> Table:
    """A table without lines, as every command prints it; the caller adds columns and rows."""
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bright_black")


def stderr() -> Console:
    """For progress, hints and errors."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def as_json(message: Message) -> dict[str, Any]:
    """A message as JSON, with the field names of its proto."""
    return MessageToDict(message, preserving_proto_field_name=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def print_json_line(value: Any) -> None:
    """One JSON document on one line, at once."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()
