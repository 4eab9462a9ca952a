"""Every service's schema, on SQLite and on PostgreSQL."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, inspect, text

from services.kit.errors import InvalidArgumentError, UnavailableError
from services.kit.storage.database import open_database, translate_database_errors
from tests.conftest import OpenDatabase, migrations
from tests.contract.storage.conftest import SERVICES
from tests.postgresql import PostgreSQL


def _metadata(service: str) -> MetaData:
    module = "gateway.keys.store" if service == "gateway" else f"services.{service}.adapters.tables"
    found: MetaData = importlib.import_module(module).metadata
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_the_migrations_make_the_declared_tables(open_service_database: OpenDatabase, service: str) -> None:
    with open_service_database(service).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), _metadata(service)) == []


def test_all_services_live_side_by_side_and_find_their_tables_again(open_service_database: OpenDatabase) -> None:
    for _ in range(2):
        for service in SERVICES:
            engine = open_service_database(service)
            assert set(_metadata(service).tables) <= set(inspect(engine).get_table_names())
            with pytest.raises(ZeroDivisionError), engine.begin():
                raise ZeroDivisionError
            with engine.connect() as connection:  # a rollback has not taken the schema away
                for table in _metadata(service).tables.values():
                    connection.execute(table.select().limit(1))


def test_two_processes_that_start_at_once_make_the_tables_once(postgresql: PostgreSQL) -> None:
    url = postgresql.create("at-once")
    with ThreadPoolExecutor(4) as pool:
        engines = list(pool.map(lambda _: open_database(url, migrations("pipeline"), schema="pipeline"), range(4)))
    for engine in engines:
        assert inspect(engine).has_table("cycles")
        engine.dispose()


def test_a_server_that_is_unavailable_is_reported_and_found_again(postgresql: PostgreSQL) -> None:
    engine = open_database(postgresql.create("away"), migrations("pipeline"), schema="pipeline")
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    postgresql.stop()
    try:
        with pytest.raises(UnavailableError, match="does not answer"), translate_database_errors():
            engine.connect()
        with pytest.raises(UnavailableError, match="does not answer"):
            open_database(postgresql.url("away"), migrations("pipeline"), schema="pipeline")
    finally:
        postgresql.start()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM cycles")).scalar() == 0
    engine.dispose()


def test_a_missing_driver_and_a_wrong_url_are_reported() -> None:
    with pytest.raises(InvalidArgumentError, match="is not a valid database URL"):
        open_database("not a url", migrations("pipeline"))
    with pytest.raises(InvalidArgumentError, match="driver"):
        open_database("postgresql+nodriver://x/y", migrations("pipeline"))
