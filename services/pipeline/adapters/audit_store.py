"""The audit trail in the service's database: who writes an entry does so in the transaction of what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, select

from services.kit.storage.database import one_at_a_time, read_only, translate_database_errors
from services.pipeline.adapters.rollout_rows import entry_of_row, entry_row
from services.pipeline.adapters.rollout_tables import audit_entries, unsent_entries
from services.pipeline.domain.audit import AuditEntry


class SqlAuditStore:
    """Implements `AuditStore` of `services.pipeline.app.rollout_ports`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def append(self, entries: Sequence[AuditEntry]) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, "audit entries")
            given = {entry.entry_id: entry for entry in entries}
            query = select(audit_entries.c.entry_id).where(audit_entries.c.entry_id.in_(list(given)))
            known = set(connection.execute(query).scalars())
            add(connection, [entry for entry_id, entry in given.items() if entry_id not in known])

    def page(self, resource: str, before: str, limit: int) -> Sequence[AuditEntry]:
        """See the port."""
        query = select(audit_entries).order_by(audit_entries.c.entry_id.desc()).limit(limit)
        if resource:
            query = query.where(audit_entries.c.resource == resource)
        return self._read(query.where(audit_entries.c.entry_id < before) if before else query)

    def unsent(self, limit: int) -> Sequence[AuditEntry]:
        """See the port."""
        query = select(audit_entries).join(unsent_entries, audit_entries.c.entry_id == unsent_entries.c.entry_id)
        return self._read(query.order_by(audit_entries.c.entry_id).limit(limit))

    def mark_sent(self, entry_ids: Sequence[str]) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(delete(unsent_entries).where(unsent_entries.c.entry_id.in_(list(entry_ids))))

    def _read(self, query: Any) -> list[AuditEntry]:
        with translate_database_errors(), self._reads.connect() as connection:
            return [entry_of_row(row) for row in connection.execute(query).mappings()]


def add(connection: Connection, entries: Sequence[AuditEntry]) -> None:
    """Adds entries to the trail, and to what people are to be notified of."""
    if entries:
        connection.execute(insert(audit_entries), [entry_row(entry) for entry in entries])
    # What happens to routes is in the trail, and part of what a roll-out reports anyway.
    unsent = [{"entry_id": entry.entry_id} for entry in entries if entry.action.startswith("rollout.")]
    if unsent:
        connection.execute(insert(unsent_entries), unsent)
