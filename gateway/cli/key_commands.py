"""`tidemill keys`: API keys, in the gateway's own database on this machine."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.durations import duration
from gateway.cli.mesh_owner import as_owner
from gateway.cli.output import JsonOption, plain_table, print_json, print_whole, stderr, stdout
from services.kit.config import state_dir
from services.kit.errors import InvalidArgumentError

if TYPE_CHECKING:
    from gateway.keys.key import ApiKey, Role
    from gateway.keys.store import KeyStore

_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")

keys = typer.Typer(help="API keys of the gateway (needs access to its database).", no_args_is_help=True)

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

    as_owner()
    store = KeyStore.open(url or f"sqlite:///{state_dir() / 'db' / 'gateway.sqlite'}")
    try:
        yield store
    finally:
        store.close()


RoleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--role",
        help="What the key may do: read, predict, ingest, operate or admin; repeatable. "
        "Default: read, predict and ingest.",
        show_default=False,
    ),
]


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who or what will use the key.", show_default=False)],
    role: RoleOption = None,
    expires: Annotated[
        str, typer.Option(help="How long the key is valid, such as 90d; by default until it is revoked.")
    ] = "",
    tenant: Annotated[str, typer.Option(help="Tenant of the key, passed on to the services.")] = "",
    requests_per_s: Annotated[
        float | None, typer.Option(help="Maximum requests per second.", min=0.001, show_default=False)
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(help="Maximum concurrent requests.", min=1, show_default=False)
    ] = None,
    tokens_per_day: Annotated[
        int | None,
        typer.Option(help="Maximum tokens of prompts and answers in a day of UTC.", min=1, show_default=False),
    ] = None,
    database_url: DatabaseOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Creates a key and prints it; it cannot be shown again."""
    from gateway.keys.key import USUAL_ROLES, KeyLimits

    roles = _roles(role) if role else USUAL_ROLES
    expire_time = datetime.now(UTC) + duration(expires, "--expires") if expires else None
    if tenant and not _TENANT.fullmatch(tenant):
        raise InvalidArgumentError("--tenant must have 1 to 64 of the characters a-z, A-Z, 0-9, '.', '_' and '-'.")
    with _store(database_url) as store:
        key, text = store.create(
            name[:64],
            roles,
            expire_time=expire_time,
            tenant=tenant,
            limits=KeyLimits(requests_per_s, concurrent, tokens_per_day),
        )
    _show_new(key, text, json_wanted)


@keys.command("limit")
def limit(
    key_id: Annotated[str, typer.Argument(help="Id of the key, see `tidemill keys list`.", show_default=False)],
    requests_per_s: Annotated[
        float | None, typer.Option(help="Maximum requests per second; 0 for any number.", min=0, show_default=False)
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(help="Maximum concurrent requests; 0 for any number.", min=0, show_default=False)
    ] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option(help="Maximum tokens in a day of UTC; 0 for any number.", min=0, show_default=False)
    ] = None,
    database_url: DatabaseOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Shows the limits of a key and what it used of them, and changes those that are given, within five seconds."""
    from gateway.keys.key import KeyLimits

    with _store(database_url) as store:
        key = store.get(key_id)
        now = key.limits
        wanted = KeyLimits(
            now.requests_per_s if requests_per_s is None else requests_per_s or None,
            now.concurrent if concurrent is None else concurrent or None,
            now.tokens_per_day if tokens_per_day is None else tokens_per_day or None,
        )
        if wanted != now:
            key = store.set_limits(key_id, wanted)
    spent = _spent()
    if json_wanted:
        print_json(_json(key, spent))
        return
    stdout().print(f"{key.key_id} of {key.name}: {_limits(key, spent) or 'no limits'}", markup=False)


def _spent() -> dict[str, int]:
    """Tokens that keys with a limit used today, as this machine's gateway counts them."""
    from gateway.keys.limiter import DAY_S
    from gateway.keys.usage import FILE_NAME, tokens_spent

    return tokens_spent(state_dir() / "gateway" / FILE_NAME, int(time.time() // DAY_S))


def _roles(names: list[str]) -> frozenset[Role]:
    from gateway.keys.key import Role

    known = {item.value for item in Role}
    for name in names:
        if name not in known:
            raise InvalidArgumentError(f"--role {name!r} is not a role; choose from {', '.join(Role)}.")
    return frozenset(Role(name) for name in names)


def _show_new(key: ApiKey, text: str, json_wanted: bool) -> None:
    if json_wanted:
        print_json({**_json(key, {}), "key": text})
        return
    sys.stdout.write(text + "\n")
    until = f" until {key.expire_time.astimezone():%Y-%m-%d %H:%M}" if key.expire_time else ""
    stderr().print(
        f"Key {key.key_id} for {key.name} ({', '.join(sorted(key.roles))}). It is valid now{until}. It is not shown "
        "again.",
        markup=False,
    )


def _json(key: ApiKey, spent: Mapping[str, int]) -> dict[str, object]:
    def time_of(moment: datetime | None) -> str | None:
        return moment.isoformat() if moment else None

    return {
        "id": key.key_id,
        "name": key.name,
        "roles": sorted(key.roles),
        "tenant": key.tenant,
        "requests_per_s": key.limits.requests_per_s,
        "concurrent": key.limits.concurrent,
        "tokens_per_day": key.limits.tokens_per_day,
        "tokens_today": spent.get(key.key_id, 0) if key.limits.tokens_per_day else None,
        "create_time": time_of(key.create_time),
        "expire_time": time_of(key.expire_time),
        "last_use_time": time_of(key.last_use_time),
        "revoke_time": time_of(key.revoke_time),
    }


@keys.command("list")
def list_keys(database_url: DatabaseOption = None, json_wanted: JsonOption = False) -> None:
    """Lists the keys, without their secrets."""
    with _store(database_url) as store:
        found = store.list()
    spent = _spent()
    if json_wanted:
        print_json([_json(key, spent) for key in found])
        return
    if not found:
        stdout().print("There are no keys; the gateway creates the first one when it starts.")
        return
    columns = ["id", "name", "roles", "created", "last used", "ends"]
    tenants, limited = any(key.tenant for key in found), any(_limits(key, spent) for key in found)
    columns += [*(["tenant"] if tenants else []), *(["limits"] if limited else [])]
    table = plain_table()
    for column in columns:
        table.add_column(column)
    for key in found:
        table.add_row(
            key.key_id,
            key.name,
            ",".join(sorted(key.roles)),
            _minute(key.create_time),
            _minute(key.last_use_time),
            f"revoked {_minute(key.revoke_time)}" if key.revoke_time else _minute(key.expire_time),
            *([key.tenant] if tenants else []),
            *([_limits(key, spent)] if limited else []),
        )
    print_whole(table)


def _minute(moment: datetime | None) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}" if moment else ""


def _limits(key: ApiKey, spent: Mapping[str, int]) -> str:
    limits = key.limits
    parts = (
        f"{limits.requests_per_s:g}/s" if limits.requests_per_s is not None else "",
        f"{limits.concurrent} at once" if limits.concurrent else "",
        f"{spent.get(key.key_id, 0):,} of {limits.tokens_per_day:,} tokens today" if limits.tokens_per_day else "",
    )
    return ", ".join(part for part in parts if part)


@keys.command("rotate")
def rotate(
    key_id: Annotated[str, typer.Argument(help="Id of the key, see `tidemill keys list`.", show_default=False)],
    overlap: Annotated[str, typer.Option(help="How long the old key stays valid, such as 1h.")] = "1h",
    database_url: DatabaseOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Creates a key with the same rights and prints it; the old one expires after the overlap."""
    span = duration(overlap, "--overlap")
    with _store(database_url) as store:
        from gateway.keys.key import id_of
        from gateway.keys.store import KEY_FILE, write_local_key

        key, text = store.rotate(key_id, span)
        local = state_dir() / KEY_FILE
        if local.is_file() and id_of(local.read_text(encoding="utf-8").strip()) == key_id:
            write_local_key(state_dir(), text)
            stderr().print(f"{local} contains the new key.", markup=False)
    _show_new(key, text, json_wanted)


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, see `tidemill keys list`.", show_default=False)],
    database_url: DatabaseOption = None,
) -> None:
    """Revokes a key; the gateway refuses it within five seconds."""
    with _store(database_url) as store:
        key = store.revoke(key_id)
    stdout().print(f"The key {key.key_id} of {key.name} is revoked.", markup=False)
