"""Writes many rows by one statement, with as little work as possible while the transaction is open.

On SQLite a transaction that writes keeps all others waiting, so the values for the driver are made before it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.dialects import postgresql, sqlite

Values = tuple[Any, ...] | dict[str, Any]
"""A row as the driver takes it."""


class RowWriter:
    """A statement that inserts rows into a table, and may update those that exist."""

    def __init__(self, dialect: Dialect, table: Table, statement: sqlite.Insert | postgresql.Insert) -> None:
        """Args:
        dialect: of the database.
        table: the table.
        statement: the insertion of one row, with what follows if it exists.
        """
        compiled = statement.compile(dialect=dialect, column_keys=[column.name for column in table.columns])
        self._sql = str(compiled)
        self._by_position = compiled.positiontup is not None
        self._columns: list[tuple[str, Callable[[Any], Any] | None]] = [
            (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup or compiled.binds
        ]

    def values(self, row: Mapping[str, Any]) -> Values:
        """The row for `write`; made before the transaction."""
        made = [(name, row[name] if convert is None else convert(row[name])) for name, convert in self._columns]
        return tuple(value for _, value in made) if self._by_position else dict(made)

    def write(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Writes rows, of which no two have the same key."""
        if rows:
            connection.exec_driver_sql(self._sql, list(rows))
