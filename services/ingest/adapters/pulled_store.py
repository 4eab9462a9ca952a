"""What was pulled from each origin, in the service's database: it uses disk, not memory, as records grow.

A row has the content of the origin's last successful import (`content_digest`, empty before the first) and what the
last pull saw (`seen_digest`, and its generation). It is written before the record is published, so everything on the
bus has its row.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Engine, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from services.ingest.adapters.tables import imports, pulled_records
from services.ingest.app.ports import Pull
from services.ingest.domain.record import RawRecord
from services.ingest.domain.source_import import Differences, ImportState
from services.kit.storage.database import read_only, translate_database_errors

_ROWS = pulled_records.c


class SqlPulledStore:
    """Implements `services.ingest.app.ports.PulledStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def begin(self, pull: Pull) -> bool:
        """See the port."""
        mine = update(imports).where(imports.c.name == pull.import_name, imports.c.state == ImportState.RUNNING.value)
        with translate_database_errors(), self._engine.begin() as connection:
            return connection.execute(mine.values(generation=pull.generation)).rowcount == 1

    def note(self, pull: Pull, records: Sequence[RawRecord]) -> bool:
        """See the port."""
        # If a record occurs twice in a batch, the last occurrence counts.
        seen = {record.record_id: record.content_digest for record in records}
        rows = [
            {
                "origin": pull.origin,
                "record_id": record_id,
                "content_digest": "",
                "seen_digest": seen[record_id],
                "seen_by": pull.generation,
            }
            for record_id in sorted(seen)
        ]
        with translate_database_errors(), self._engine.begin() as connection:
            if not _is_mine(connection, pull):
                return False
            if not rows:
                return True
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            statement = insert(pulled_records)
            given = statement.excluded
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["origin", "record_id"],
                    set_={"seen_digest": given.seen_digest, "seen_by": given.seen_by},
                ),
                rows,
            )
        return True

    def differences(self, pull: Pull) -> Differences:
        """See the port."""
        of_origin = select(func.count()).where(_ROWS.origin == pull.origin)
        seen = of_origin.where(_ROWS.seen_by == pull.generation)
        known = _ROWS.content_digest != ""
        queries = (
            seen.where(~known),
            seen.where(known, _ROWS.content_digest != _ROWS.seen_digest),
            of_origin.where(_ROWS.seen_by != pull.generation),
        )
        with translate_database_errors(), self._reads.connect() as connection:
            return Differences(*(int(connection.execute(query).scalar_one()) for query in queries))

    def gone(self, pull: Pull, after: str, limit: int) -> Sequence[str]:
        """See the port."""
        query = (
            select(_ROWS.record_id)
            .where(_ROWS.origin == pull.origin, _ROWS.record_id > after, _ROWS.seen_by != pull.generation)
            .order_by(_ROWS.record_id)
            .limit(limit)
        )
        with translate_database_errors(), self._reads.connect() as connection:
            return list(connection.execute(query).scalars())


def settle(connection: Connection, pull: Pull, *, forget_gone: bool) -> None:
    """Makes what a pull has seen the state of its origin, and deletes what it withdrew."""
    of_origin = _ROWS.origin == pull.origin
    seen = update(pulled_records).where(
        of_origin, _ROWS.seen_by == pull.generation, _ROWS.content_digest != _ROWS.seen_digest
    )
    connection.execute(seen.values(content_digest=_ROWS.seen_digest))
    if forget_gone:
        connection.execute(delete(pulled_records).where(of_origin, _ROWS.seen_by != pull.generation))


def _is_mine(connection: Connection, pull: Pull) -> bool:
    """Whether the import still runs and is still this pull's; locks it until the transaction ends."""
    row = select(imports.c.name).where(
        imports.c.name == pull.import_name,
        imports.c.state == ImportState.RUNNING.value,
        imports.c.generation == pull.generation,
    )
    return connection.execute(row.with_for_update()).first() is not None
