"""`tidemill keys`: API keys, in the gateway's own database on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from gateway.cli.output import JsonOption, print_json, print_whole, stderr, stdout
from services.kit.config import state_dir

if TYPE_CHECKING:
    from gateway.keys.store import KeyStore

keys = typer.Typer(help="API keys of the gateway (for who may read its database).", no_args_is_help=True)

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar="TIDEMILL_DATABASE_URL",
        help="The gateway's database; this machine's mesh by default.",
        show_default=False,
    ),
]


@contextmanager
def _store(url: str | None) -> Iterator[KeyStore]:
    from gateway.keys.store import KeyStore  # SQLAlchemy takes longer to import than everything else together

    store = KeyStore.open(url or f"sqlite:///{state_dir() / 'db' / 'gateway.sqlite'}")
    try:
        yield store
    finally:
        store.close()


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who or what will use it.", show_default=False)],
    database_url: DatabaseOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Makes a key and prints it; it cannot be shown again."""
    with _store(database_url) as store:
        key, text = store.create(name[:64])
    if json_wanted:
        print_json({"id": key.key_id, "name": key.name, "key": text})
        return
    sys.stdout.write(text + "\n")
    stderr().print(f"Key {key.key_id} for {key.name}. It holds at once and is not shown again.", markup=False)


@keys.command("list")
def list_keys(database_url: DatabaseOption = None, json_wanted: JsonOption = False) -> None:
    """Lists the keys, without their secrets."""
    with _store(database_url) as store:
        found = store.list()
    if json_wanted:
        print_json(
            [
                {
                    "id": key.key_id,
                    "name": key.name,
                    "create_time": key.create_time.isoformat(),
                    "revoke_time": key.revoke_time.isoformat() if key.revoke_time else None,
                }
                for key in found
            ]
        )
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bright_black")
    for column in ("id", "name", "created", "revoked"):
        table.add_column(column)
    for key in found:
        revoked = f"{key.revoke_time.astimezone():%Y-%m-%d %H:%M}" if key.revoke_time else ""
        table.add_row(key.key_id, key.name, f"{key.create_time.astimezone():%Y-%m-%d %H:%M}", revoked)
    if found:
        print_whole(table)
    else:
        stdout().print("There are no keys; the gateway makes the first one when it starts.")


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="As `tidemill keys list` shows it.", show_default=False)],
    database_url: DatabaseOption = None,
) -> None:
    """Ends a key; the gateway refuses it within five seconds."""
    with _store(database_url) as store:
        key = store.revoke(key_id)
    stdout().print(f"The key {key.key_id} of {key.name} is revoked.", markup=False)
