"""A service's own database: SQLite by default, PostgreSQL by URL. Migrates to the newest schema at start."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, DataError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.schema import CreateSchema

from services.kit.errors import (
    DataLossError,
    InvalidArgumentError,
    TidemillError,
    UnavailableError,
    database_damaged,
    disk_full,
)
from services.kit.fatal import FATAL
from services.kit.storage.disk import disk_space

logger = logging.getLogger(__name__)

_READ_ONLY = "tidemill_read_only"
# PostgreSQL's data_corrupted and index_corrupted, and disk_full.
_DAMAGED_STATES, _DISK_FULL_STATE = ("XX001", "XX002"), "53100"
_MIN_FREE = 2**20
_AT_ONCE = 500
# Checking this much takes a quarter of a second; `tidemill doctor` checks larger files.
_CHECKED_BYTES = 256 * 2**20


def open_database(url: str, migrations: Path, *, schema: str = "") -> Engine:
    """Opens the database and applies pending migrations, one process at a time.

    Args:
        url: SQLAlchemy URL; the folder of an SQLite file is created. `postgresql://` means `postgresql+psycopg://`.
        migrations: Alembic's script folder (contains `versions/`).
        schema: PostgreSQL schema of the tables, so that services can share a database; created if missing. Not used
            with SQLite, where each service has a file of its own.

    Raises:
        InvalidArgumentError: the URL is invalid, or its driver is not installed.
        UnavailableError: the server does not respond.
        DataLossError: the SQLite file is damaged.
    """
    engine = engine_of(url)
    sqlite = engine.dialect.name == "sqlite"
    if sqlite and engine.url.database and engine.url.database != ":memory:":
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
    event.listen(engine, "handle_error", partial(_explain, engine))
    if sqlite:
        event.listen(engine, "connect", _tune_sqlite)
        event.listen(engine, "begin", _begin)
    elif schema:
        event.listen(engine, "connect", partial(_choose_schema, schema))
    try:
        if sqlite:
            _check_sqlite(engine)
        with engine.begin() as connection:
            if not sqlite:
                # Two processes of one service that start at the same time would both create the tables.
                one_at_a_time(connection, f"schema {schema}")
                if schema:
                    connection.execute(CreateSchema(schema, if_not_exists=True))
            config = Config()
            config.set_main_option("script_location", str(migrations))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except OperationalError as error:
        raise UnavailableError(
            f"The database {engine.url.render_as_string(hide_password=True)} does not answer: {error.orig}",
            reason="DATABASE_UNAVAILABLE",
        ) from error
    except sqlite3.DatabaseError as error:  # before SQLAlchemy had a connection whose errors it could translate
        raise _fault(engine, error) or error from error
    return engine


def engine_of(url: str) -> Engine:
    """The engine of a database; nothing is opened.

    Args:
        url: SQLAlchemy URL; `postgresql://` means `postgresql+psycopg://`.

    Raises:
        InvalidArgumentError: the URL is invalid, or its driver is not installed.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidArgumentError(f"TIDEMILL_DATABASE_URL is not a valid database URL: {error}") from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    try:
        return create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise InvalidArgumentError(
            f"The driver of {parsed.drivername} is not installed: {error}. Install tidemill[postgresql]."
        ) from error


def read_only(engine: Engine) -> Engine:
    """The same database for read-only work: on SQLite it neither waits nor blocks."""
    return engine.execution_options(**{_READ_ONLY: True})


def in_parts(values: Collection[str]) -> Iterator[list[str]]:
    """Values in order, some hundreds at a time: a statement takes no more parameters than a database allows."""
    ordered = sorted(values)
    return (ordered[at : at + _AT_ONCE] for at in range(0, len(ordered), _AT_ONCE))


def one_at_a_time(connection: Connection, what: str) -> None:
    """Locks out transactions that request the same lock until this one ends; for code that reads before it writes.

    On SQLite each transaction has the file to itself anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(what))))


def forget_deleted(engine: Engine) -> None:
    """Empties SQLite's write-ahead log, which still holds what was deleted; the file itself is overwritten with zeros.

    PostgreSQL needs no such call: its vacuum does that.

    Raises:
        UnavailableError: others read the old state for too long; call it again.
    """
    if engine.dialect.name != "sqlite":
        return
    # A checkpoint is not possible within a transaction, which a connection of SQLAlchemy always has.
    raw = engine.raw_connection()
    try:
        busy, *_ = raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        raw.close()
    if busy:
        raise UnavailableError(
            "The database is read all the time, so its log still holds what was deleted.",
            reason="DATABASE_BUSY",
            retry_after_s=1,
        )


@contextmanager
def translate_database_errors() -> Iterator[None]:
    """Turns errors of an unavailable or locked database into retryable ones: the bus redelivers, callers retry.

    Raises:
        UnavailableError: the database does not respond.
        ResourceExhaustedError: its disk is full.
        DataLossError: it is damaged.
        InvalidArgumentError: it cannot store a value, such as a NUL or a text that is too long.
    """
    try:
        yield
    except DataError as error:
        raise InvalidArgumentError(
            f"The service's database cannot store the given value: {error.orig}", reason="UNSTORABLE_VALUE"
        ) from error
    except (OperationalError, InterfaceError) as error:
        raise UnavailableError(
            f"The service's database does not answer: {error.orig}", reason="DATABASE_UNAVAILABLE", retry_after_s=1
        ) from error


def _explain(engine: Engine, context: ExceptionContext) -> None:
    """Raises a machine fault as the error that all services share, whichever statement meets it."""
    if (fault := _fault(engine, context.original_exception)) is not None:
        if isinstance(fault, DataLossError):
            FATAL.report(fault)
        raise fault from context.original_exception


def _fault(engine: Engine, error: BaseException) -> TidemillError | None:
    """A damaged file or a full disk behind a driver's error; None for any other error."""
    name = engine.url.database or engine.url.render_as_string(hide_password=True)
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    state = getattr(error, "sqlstate", None) or ""
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or state in _DAMAGED_STATES:
        return database_damaged(name, error)
    if primary == sqlite3.SQLITE_FULL or state == _DISK_FULL_STATE:
        return disk_full(name)
    # A write-ahead log whose index cannot grow only reports an input/output error.
    if primary == sqlite3.SQLITE_IOERR and disk_space(Path(name)).free < _MIN_FREE:
        return disk_full(name)
    return None


def _check_sqlite(engine: Engine) -> None:
    """Checks a file that is not too large: a damaged one must neither be served nor made worse."""
    file = Path(engine.url.database or "")
    if not file.is_file() or not 0 < file.stat().st_size <= _CHECKED_BYTES:
        return
    with engine.connect() as connection:
        found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if found != "ok":
        raise database_damaged(str(file), found)


def _tune_sqlite(connection: Any, _record: Any) -> None:
    # pysqlite's own transaction handling begins too late; SQLAlchemy's `begin` event does it instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # WAL with NORMAL loses nothing on kill -9. Only a power cut may undo the last commits; what they acknowledged is
    # still on the bus, whose offset is committed afterwards.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.execute("PRAGMA foreign_keys=ON")
    # What was erased, or kept for its time only, must not stand in the file any more.
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


def _choose_schema(schema: str, connection: Any, _record: Any) -> None:
    # Outside a transaction, or the first rollback would undo it.
    before, connection.autocommit = connection.autocommit, True
    connection.execute(f'SET SESSION search_path TO "{schema}"')
    connection.autocommit = before


def _begin(connection: Any) -> None:
    # A deferred transaction that turns from read to write fails at once with SQLITE_BUSY. Read-only work sees the state
    # at its beginning and needs no lock.
    reads = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
