"""Checks the databases of a mesh, files of SQLite or schemas of a PostgreSQL server; writes nothing but repairs."""

from __future__ import annotations

import http.client
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from infra.stack.doctor.findings import Check, Finding, Level
from infra.stack.doctor.postgresql import TIMEOUT_S, engine_soon, said, server_findings, shown
from infra.stack.doctor.revisions import Query, revision_findings, revisions_of
from infra.stack.doctor.stores import Database, Stores
from infra.stack.layout import Layout
from infra.stack.state import read_state
from services.kit.errors import InvalidArgumentError
from services.kit.storage.original_keys import key_id, read_keys

_KEYS_IN_USE = (
    "SELECT key_id, count(*) FROM {schema}raw_records WHERE key_id <> '' GROUP BY key_id",
    "SELECT key_id, count(*) FROM {schema}verdicts WHERE key_id <> '' GROUP BY key_id",
)


def checks(layout: Layout) -> list[Check]:
    """All checks of databases."""
    looks = {"databases": _databases, "originals": _originals, "registry": _registry}
    return [Check(name, partial(look, layout)) for name, look in looks.items()]


def database_faults(file: Path) -> list[str]:
    """Errors that SQLite finds in a database, one per line; reads the whole file and writes nothing."""
    try:
        with closing(_read_only(file)) as database:
            lines = [str(row[0]) for row in database.execute("PRAGMA integrity_check(20)")]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [] if lines == ["ok"] else lines


def _databases(layout: Layout) -> Iterator[Finding]:
    stores, running = Stores.of(layout), read_state(layout).running
    if stores.database_url.startswith("sqlite"):
        yield Finding(
            "databases",
            Level.FAULT,
            "TIDEMILL_DATABASE_URL names an SQLite file, which the services cannot share.",
            "Unset it, and each gets a file of its own, or name a PostgreSQL database "
            "(postgresql://user@host/database).",
        )
    elif stores.database_url:
        yield from server_findings(stores, running)
    else:
        for database in stores.databases:
            if database.file is not None and database.file.exists():
                yield from _file("databases", database.file, running)
                yield from _file_revision(database, running)


def _file(check: str, file: Path, running: bool) -> Iterator[Finding]:
    wrong = database_faults(file)
    if not wrong:
        return
    indexes = all("index" in line for line in wrong)
    yield Finding(
        check,
        Level.FAULT,
        f"{file} is damaged: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if wrong[1:] else "."),
        (
            "Only its indexes are: with the mesh stopped, `tidemill doctor --repair` builds them again."
            if indexes
            else "Stop the mesh and put the file from a backup in its place. Without one, `sqlite3 FILE .recover` "
            f"saves what can be read; if you delete the file, {file.stem} starts empty."
        ),
        partial(_reindex, file) if indexes and not running else None,
        reason="DATABASE_DAMAGED",
    )


def _file_revision(database: Database, running: bool) -> Iterator[Finding]:
    assert database.file is not None
    try:
        with closing(_read_only(database.file)) as connection:
            revisions = revisions_of(lambda query: connection.execute(query.format(schema="")))
    except sqlite3.DatabaseError:  # new, or damaged, which has been said
        return
    yield from revision_findings(database, str(database.file), revisions, running, "a copy of the file")


def _originals(layout: Layout) -> Iterator[Finding]:
    """Whether the keys are there with which cleaning encrypted what it stores."""
    key_file, stores = layout.state.originals_key, Stores.of(layout)
    place, used = _keys_in_use(stores)
    there = {key_id(key) for key in read_keys(key_file)} if used and key_file.exists() else set()
    for key, rows in sorted(used.items()):
        if key not in there:
            yield Finding(
                "originals",
                Level.FAULT,
                f"{key_file} lacks the key {key}, with which {rows} rows of {place} are encrypted.",
                "Put the file back from a backup of the mesh's state and restart cleaning. Without it they cannot be "
                "read: import their sources again with `resend`.",
                reason="ORIGINALS_KEY_MISSING",
            )


def _keys_in_use(stores: Stores) -> tuple[str, dict[str, int]]:
    """Where cleaning's database is, and in how many rows each key is used.

    Empty where there are none yet, and of a file that is damaged, which another check says.

    Raises:
        OSError: the server does not answer.
    """
    (cleaning,) = (each for each in stores.databases if each.service == "cleaning")
    if cleaning.file is not None:
        if not cleaning.file.exists():
            return "", {}
        with closing(_read_only(cleaning.file)) as database:
            try:
                return str(cleaning.file), _count_keys(lambda query: database.execute(query.format(schema="")))
            except sqlite3.DatabaseError:
                return "", {}

    try:
        engine = engine_soon(stores.database_url)
    except InvalidArgumentError:
        return "", {}
    place = f"the schema cleaning of {shown(stores.database_url)}"
    try:
        with engine.connect() as connection:
            return place, _count_keys(lambda query: connection.execute(text(query.format(schema="cleaning."))))
    except ProgrammingError:  # new, or of a release without keys
        return "", {}
    except SQLAlchemyError as error:
        raise OSError(f"{place} does not answer: {said(error)}") from error
    finally:
        engine.dispose()


def _count_keys(query: Query) -> dict[str, int]:
    counts: dict[str, int] = {}
    for statement in _KEYS_IN_USE:
        for key, rows in query(statement):
            counts[key] = counts.get(key, 0) + rows
    return counts


def _registry(layout: Layout) -> Iterator[Finding]:
    """MLflow's store: a file, another database, or a server."""
    uri = Stores.of(layout).mlflow
    if uri.startswith("sqlite:///"):
        file = Path(uri.removeprefix("sqlite:///"))
        if file.exists():
            yield from _file("registry", file, read_state(layout).running)
        return
    try:
        _ask(uri)
    except (OSError, http.client.HTTPException, InvalidArgumentError) as error:
        yield Finding(
            "registry",
            Level.FAULT,
            f"MLflow's store does not answer: {error}",
            "Start it, or correct TIDEMILL_MLFLOW_URI. Meanwhile runs end with a warning, and their models are "
            "registered when one is promoted.",
            reason="REGISTRY_FAILED",
        )


def _ask(uri: str) -> None:
    """Asks a database or MLflow's server.

    Raises:
        OSError, HTTPException, InvalidArgumentError: it does not answer, or not as MLflow.
    """
    parsed = urlsplit(uri)
    if parsed.scheme in ("http", "https"):
        kind = http.client.HTTPSConnection if parsed.scheme == "https" else http.client.HTTPConnection
        with closing(kind(parsed.netloc.rpartition("@")[2], timeout=TIMEOUT_S)) as connection:
            connection.request("GET", f"{parsed.path.rstrip('/')}/health")
            status = connection.getresponse().status
        if status != http.client.OK:
            raise OSError(f"{parsed.hostname} answers {status} to /health")
    elif parsed.scheme.startswith("postgresql"):
        engine = engine_soon(uri)
        try:
            engine.connect().close()
        except SQLAlchemyError as error:
            raise OSError(f"{shown(uri)}: {said(error)}") from error
        finally:
            engine.dispose()


def _read_only(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=TIMEOUT_S)


def _reindex(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("REINDEX")
    if left := database_faults(file):
        raise OSError(f"{file} is still damaged: {left[0]}")
