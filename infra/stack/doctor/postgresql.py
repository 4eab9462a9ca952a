"""Checks a PostgreSQL server with a schema for each service."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from infra.stack.doctor.findings import Finding, Level
from infra.stack.doctor.revisions import revision_findings, revisions_of
from infra.stack.doctor.stores import Database, Stores
from services.kit.errors import InvalidArgumentError
from services.kit.storage.database import engine_of

TIMEOUT_S = 10
"""Within which a server must answer."""
# A schema's privileges alone do not say whether its tables can be written.
_READ_ONLY_TABLES = """
    SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = to_regnamespace(:schema)
    AND NOT has_table_privilege(oid, 'INSERT')
"""
_INVALID_INDEXES = """
    SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE NOT indisvalid AND relnamespace = to_regnamespace(:schema)
"""


def server_findings(stores: Stores, running: bool) -> Iterator[Finding]:
    """What is wrong with the server, or with a schema in it."""
    try:
        engine = engine_soon(stores.database_url)
    except InvalidArgumentError as error:
        yield Finding("databases", Level.FAULT, error.message, "Correct TIDEMILL_DATABASE_URL, or unset it.")
        return

    name = shown(stores.database_url)
    try:
        with engine.connect() as connection:
            yield from _server_itself(connection, name)
            for database in stores.databases:
                yield from _schema(connection, database, f"the schema {database.service} of {name}", running)
    except SQLAlchemyError as error:
        yield Finding(
            "databases",
            Level.FAULT,
            f"The database {name} does not answer: {said(error)}",
            "Start the server, or correct TIDEMILL_DATABASE_URL (host, port, user, password, database). The services "
            "try again by themselves; what they have accepted is on the bus.",
            reason="DATABASE_UNAVAILABLE",
        )
    finally:
        engine.dispose()


def _server_itself(connection: Connection, name: str) -> Iterator[Finding]:
    if connection.execute(text("SHOW transaction_read_only")).scalar_one() == "on":
        standby = connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one()
        yield Finding(
            "databases",
            Level.FAULT,
            f"{name} is a standby, which accepts no writes." if standby else f"{name} accepts no writes.",
            "Name the primary in TIDEMILL_DATABASE_URL."
            if standby
            else "Set default_transaction_read_only of the database and of the user to off.",
        )
    counted = text("SELECT checksum_failures FROM pg_stat_database WHERE datname = current_database()")
    if failures := connection.execute(counted).scalar():
        yield Finding(
            "databases",
            Level.FAULT,
            f"{name} is damaged: {failures} of its pages did not have their checksum when the server read them.",
            "This cannot be repaired from here. Stop the mesh, replace the disk if it is at fault, and restore the "
            "database from a backup.",
            reason="DATABASE_DAMAGED",
        )


def _schema(connection: Connection, database: Database, place: str, running: bool) -> Iterator[Finding]:
    """The schema of one service; one that is missing is created when the service starts."""
    own, schema = {"schema": f'"{database.service}"'}, database.service
    if connection.execute(text("SELECT to_regnamespace(:schema)"), own).scalar() is None:
        query = text("SELECT has_database_privilege(current_database(), 'CREATE')")
        if not connection.execute(query).scalar_one():
            yield _forbidden(connection, f"create {place}", "GRANT CREATE ON DATABASE … TO …")
        return
    query = text("SELECT has_schema_privilege(:schema, 'USAGE') AND has_schema_privilege(:schema, 'CREATE')")
    allowed = connection.execute(query, {"schema": schema}).scalar_one()
    if not allowed or connection.execute(text(_READ_ONLY_TABLES), own).scalar_one():
        yield _forbidden(connection, f"write to {place}", f"ALTER SCHEMA {schema} and its tables OWNER TO …")
        return
    for index in connection.execute(text(_INVALID_INDEXES), own).scalars().all():
        yield Finding(
            "databases",
            Level.FAULT,
            f"The index {index} in {place} is not valid, so it is not used and may let duplicates in.",
            "With the mesh stopped, `tidemill doctor --repair` builds it again.",
            None if running else partial(_reindex_on_server, connection.engine, index),
            reason="DATABASE_DAMAGED",
        )
    table = text("SELECT to_regclass(:table)")
    if connection.execute(table, {"table": f'"{schema}".alembic_version'}).scalar() is None:
        return
    revisions = revisions_of(lambda each: connection.execute(text(each.format(schema=f'"{schema}".'))))
    yield from revision_findings(database, place, revisions, running, "pg_dump")


def _forbidden(connection: Connection, what: str, how: str) -> Finding:
    return Finding(
        "databases", Level.FAULT, f"The user {connection.engine.url.username} may not {what}.", f"As its owner: {how}."
    )


def shown(url: str) -> str:
    """The URL of a database without its password."""
    return make_url(url).render_as_string(hide_password=True)


def said(error: SQLAlchemyError) -> str:
    """What the driver said, on one line."""
    return " ".join(str(getattr(error, "orig", error)).split())


def engine_soon(url: str) -> Engine:
    """An engine whose server must answer soon."""
    engine = engine_of(url)
    if "connect_timeout" in engine.url.query:
        return engine
    return engine_of(engine.url.update_query_dict({"connect_timeout": str(TIMEOUT_S)}).render_as_string(False))


def _reindex_on_server(engine: Engine, index: str) -> None:
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"REINDEX INDEX {index}")
    except SQLAlchemyError as error:
        raise OSError(said(error)) from error
    finally:
        engine.dispose()
