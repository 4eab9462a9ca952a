"""Imports and accepted batches in the service's database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from services.ingest.adapters.pulled_store import settle
from services.ingest.adapters.rows import import_of, import_row
from services.ingest.adapters.tables import batches, import_requests, imports, record_losses, source_positions
from services.ingest.app.ports import KnownRequest, Pull
from services.ingest.domain.source_import import Import, ImportState
from services.kit.errors import AbortedError
from services.kit.storage.database import read_only, translate_database_errors


class SqlImportStore:
    """Implements `services.ingest.app.ports.ImportStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def answer(self, request_id: str) -> KnownRequest | None:
        """See the port."""
        query = select(import_requests).where(import_requests.c.request_id == request_id)
        with translate_database_errors(), self._reads.connect() as connection:
            row = connection.execute(query).mappings().first()
        return KnownRequest(row["spec_digest"], row["import_name"], row["reused"]) if row is not None else None

    def create_import(self, draft: Import, request_id: str) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            _remember(connection, draft, request_id, reused=False)
            connection.execute(insert(imports).values(import_row(draft)))

    def reuse_import(self, earlier: Import, request_id: str) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            _remember(connection, earlier, request_id, reused=True)

    def newest_import(self, origin: str) -> Import | None:
        """See the port."""
        found = self._imports(
            select(imports).where(imports.c.origin == origin).order_by(imports.c.name.desc()).limit(1)
        )
        return found[0] if found else None

    def last_success(self, origin: str) -> Import | None:
        """See the port."""
        mine = (imports.c.origin == origin, imports.c.state == ImportState.SUCCEEDED.value)
        found = self._imports(select(imports).where(*mine).order_by(imports.c.name.desc()).limit(1))
        return found[0] if found else None

    def latest_change(self) -> datetime | None:
        """When an import last changed; None if it does not exist."""
        with translate_database_errors(), self._reads.connect() as connection:
            return connection.execute(select(func.max(imports.c.update_time))).scalar()

    def note_loss(self, moment: datetime) -> None:
        """See the port."""
        row = {"find_time": moment}
        with translate_database_errors(), self._engine.begin() as connection:
            if not connection.execute(select(record_losses).filter_by(**row)).first():
                connection.execute(insert(record_losses).values(row))

    def loss_time(self) -> datetime | None:
        """See the port."""
        with translate_database_errors(), self._reads.connect() as connection:
            return connection.execute(select(func.max(record_losses.c.find_time))).scalar()

    def import_named(self, name: str) -> Import | None:
        """See the port."""
        found = self._imports(select(imports).where(imports.c.name == name))
        return found[0] if found else None

    def imports(self, before: str, limit: int) -> Sequence[Import]:
        """See the port."""
        query = select(imports).order_by(imports.c.name.desc()).limit(limit)
        return self._imports(query.where(imports.c.name < before) if before else query)

    def running_imports(self) -> Sequence[Import]:
        """See the port."""
        return self._imports(
            select(imports).where(imports.c.state == ImportState.RUNNING.value).order_by(imports.c.name)
        )

    def update_import(self, changed: Import, generation: str = "") -> bool:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            return _update(connection, changed, generation)

    def succeed_import(self, done: Import, pull: Pull, position: Mapping[str, Any] | None = None) -> bool:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            if not _update(connection, done, pull.generation):
                return False
            settle(connection, pull, forget_gone=not done.not_synchronized)
            if position is not None:
                connection.execute(delete(source_positions).where(source_positions.c.origin == pull.origin))
                connection.execute(insert(source_positions).values(origin=pull.origin, position=dict(position)))
        return True

    def position(self, origin: str) -> Mapping[str, Any]:
        """See the port."""
        query = select(source_positions.c.position).where(source_positions.c.origin == origin)
        with translate_database_errors(), self._reads.connect() as connection:
            return connection.execute(query).scalar() or {}

    def forget_position(self, origin: str) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(delete(source_positions).where(source_positions.c.origin == origin))

    def unannounced_imports(self) -> Sequence[Import]:
        """See the port."""
        return self._imports(
            select(imports)
            .where(imports.c.state == ImportState.SUCCEEDED.value, imports.c.announced.is_(False))
            .order_by(imports.c.update_time)
        )

    def mark_import_announced(self, name: str) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(update(imports).where(imports.c.name == name).values(announced=True))

    def _imports(self, query: Any) -> Sequence[Import]:
        with translate_database_errors(), self._reads.connect() as connection:
            return [import_of(row) for row in connection.execute(query).mappings()]


def _update(connection: Connection, changed: Import, generation: str) -> bool:
    statement = update(imports).where(imports.c.name == changed.name, imports.c.state == ImportState.RUNNING.value)
    if generation:
        statement = statement.where(imports.c.generation == generation)
    return connection.execute(statement.values(import_row(changed))).rowcount == 1


def _remember(connection: Connection, answer: Import, request_id: str, *, reused: bool) -> None:
    if not request_id:
        return
    row = {"spec_digest": answer.spec.digest, "import_name": answer.name, "reused": reused}
    try:
        connection.execute(insert(import_requests).values({**row, "request_id": request_id}))
    except IntegrityError as error:
        raise AbortedError(
            f"The request {request_id!r} is being handled for another caller; retry.", retry_after_s=0.2
        ) from error


class SqlBatchStore:
    """Implements `services.ingest.app.ports.BatchStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def batch_digest(self, request_id: str) -> str | None:
        """See the port."""
        query = select(batches.c.digest).where(batches.c.request_id == request_id)
        with translate_database_errors(), self._reads.connect() as connection:
            return connection.execute(query).scalar()

    def remember_batch(self, request_id: str, digest: str, moment: datetime) -> None:
        """See the port."""
        row = {"request_id": request_id, "digest": digest, "accept_time": moment}
        try:
            with translate_database_errors(), self._engine.begin() as connection:
                connection.execute(insert(batches).values(row))
        except IntegrityError:
            # The same request arrived twice at once; both published the same records.
            return

    def forget_batches(self, before: datetime) -> None:
        """See the port."""
        statement = delete(batches).where(batches.c.accept_time < before)
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(statement)
