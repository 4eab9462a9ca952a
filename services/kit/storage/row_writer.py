"""Writes many rows by one statement, with as little work as possible while the transaction is open.

On SQLite a transaction that writes keeps all others waiting, so the values for the driver are made before it begins; on
PostgreSQL each statement costs a round of the server, so it gets hundreds of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.dialects import postgresql, sqlite

Values = Any
"""A row as the driver takes it."""


class RowWriter:
    """A statement that inserts rows into a table, and may update those that exist."""

    def __init__(self, dialect: Dialect, table: Table, statement: sqlite.Insert | postgresql.Insert) -> None:
        """Args:
        dialect: of the database.
        table: the table.
        statement: the insertion of one row, with what follows if it exists.
        """
        self._batched = None
        if dialect.name == "postgresql":
            # With RETURNING, SQLAlchemy writes many rows by each statement; without, psycopg sends them one by one.
            self._batched = statement.returning(next(iter(table.primary_key.columns)))
            return
        compiled = statement.compile(dialect=dialect, column_keys=[column.name for column in table.columns])
        self._sql = str(compiled)
        self._columns: list[tuple[str, Callable[[Any], Any] | None]] = [
            (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup or ()
        ]

    def values(self, row: Mapping[str, Any]) -> Values:
        """The row for `write`; made before the transaction."""
        if self._batched is not None:
            return row
        return tuple(
            row[name] if convert is None else convert(row[name])  # type: ignore[no-untyped-call, unused-ignore]
            for name, convert in self._columns
        )

    def write(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Writes rows, of which no two have the same key."""
        if not rows:
            return
        if self._batched is not None:
            connection.execute(self._batched, rows)
        else:
            connection.exec_driver_sql(self._sql, list(rows))
