"""Raw records and verdicts in the service's database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Table, and_, bindparam, false, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from services.cleaning.adapters.rows import raw_record, raw_row, verdict_of, verdict_row
from services.cleaning.adapters.tables import import_records, raw_records, verdicts
from services.cleaning.app.ports import Announcement, Arrival
from services.cleaning.domain.dataset import Dataset
from services.cleaning.domain.record import RawRecord, Verdict
from services.kit.storage.database import read_only, translate_database_errors

_VERDICT_COLUMNS = [column.label(f"verdict_{column.name}") for column in verdicts.c]


class SqlRecordStore:
    """Implements `services.cleaning.app.ports.RecordStore`; threads share it."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def collect(self, arrivals: Sequence[Arrival], found: Sequence[Verdict]) -> None:
        """See the port. Of a record that comes twice in a batch the last one counts."""
        newest = {arrival.record.record_id: arrival for arrival in arrivals}
        imports = {(a.record.import_name, a.record.record_id) for a in arrivals if a.record.import_name}
        with translate_database_errors(), self._engine.begin() as connection:
            rows = [raw_row(newest[record_id].record) for record_id in sorted(newest)]
            _upsert(connection, raw_records, rows, changed_by=["content_digest"])
            pairs = [{"import_name": name, "record_id": record_id} for name, record_id in sorted(imports)]
            _upsert(connection, import_records, pairs, changed_by=[])
            self._save(connection, found, {record_id: newest[record_id].traceparent for record_id in newest})

    def save_verdicts(self, found: Sequence[Verdict]) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            self._save(connection, found, {})

    def _save(self, connection: Connection, found: Sequence[Verdict], traces: Mapping[str, str]) -> None:
        rows = [verdict_row(verdict, traces.get(verdict.record_id, "")) for verdict in found]
        _upsert(connection, verdicts, rows, changed_by=["recipe_digest", "content_digest"])

    def stale(self, dataset: Dataset, after: str, limit: int) -> Sequence[RawRecord]:
        """See the port."""
        fresh = and_(
            verdicts.c.record_id == raw_records.c.record_id,
            verdicts.c.dataset == dataset.name,
            verdicts.c.recipe_digest == dataset.recipe_digest,
            verdicts.c.content_digest == raw_records.c.content_digest,
        )
        # Not the bare column: SQLite would take the index of the sources and sort all their records for each page.
        source = raw_records.c.source + ""
        query = (
            select(raw_records)
            .outerjoin(verdicts, fresh)
            .where(raw_records.c.record_id > after, source.in_(dataset.spec.sources), verdicts.c.record_id.is_(None))
            .order_by(raw_records.c.record_id)
            .limit(limit)
        )
        with translate_database_errors(), self._reads.connect() as connection:
            return [raw_record(row) for row in connection.execute(query).mappings()]

    def announcements(self, limit: int) -> Sequence[Announcement]:
        """See the port."""
        # `= 0`, not `IS 0`: only then SQLite sees that the index of the unannounced answers it.
        query = select(verdicts).where(verdicts.c.announced == false()).order_by(verdicts.c.record_id).limit(limit)
        with translate_database_errors(), self._reads.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [Announcement(verdict_of(row), row["traceparent"]) for row in rows]

    def mark_announced(self, announcements: Sequence[Announcement]) -> None:
        """See the port."""
        keys = [
            {
                "key_dataset": item.verdict.dataset,
                "key_record_id": item.verdict.record_id,
                "key_recipe_digest": item.verdict.recipe_digest,
                "key_content_digest": item.verdict.content_digest,
            }
            for item in announcements
        ]
        if not keys:
            return
        same = and_(*(verdicts.c[name.removeprefix("key_")] == bindparam(name) for name in keys[0]))
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(update(verdicts).where(same).values(announced=True), keys)

    def import_counts(self, imports: Sequence[str]) -> Mapping[str, int]:
        """See the port."""
        query = (
            select(import_records.c.import_name, func.count())
            .where(import_records.c.import_name.in_(imports))
            .group_by(import_records.c.import_name)
        )
        with translate_database_errors(), self._reads.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def content_digests(self, sources: Sequence[str]) -> Mapping[str, str]:
        """See the port."""
        query = select(raw_records.c.record_id, raw_records.c.content_digest).where(raw_records.c.source.in_(sources))
        with translate_database_errors(), self._reads.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def with_verdicts(self, dataset: str, sources: Sequence[str]) -> Sequence[tuple[RawRecord, Verdict | None]]:
        """See the port."""
        present = and_(
            verdicts.c.record_id == raw_records.c.record_id,
            verdicts.c.dataset == dataset,
            verdicts.c.content_digest == raw_records.c.content_digest,
        )
        query = (
            select(raw_records, *_VERDICT_COLUMNS)
            .outerjoin(verdicts, present)
            .where(raw_records.c.source.in_(sources))
            .order_by(raw_records.c.record_id)
        )
        with translate_database_errors(), self._reads.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            (raw_record(row), verdict_of(row, "verdict_") if row["verdict_record_id"] is not None else None)
            for row in rows
        ]

    def record(self, record_id: str) -> tuple[RawRecord, Sequence[Verdict]] | None:
        """See the port."""
        with translate_database_errors(), self._reads.connect() as connection:
            raw = connection.execute(select(raw_records).where(raw_records.c.record_id == record_id)).mappings().first()
            if raw is None:
                return None
            query = select(verdicts).where(verdicts.c.record_id == record_id).order_by(verdicts.c.dataset)
            return raw_record(raw), [verdict_of(row) for row in connection.execute(query).mappings()]


def _upsert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]], changed_by: Sequence[str]) -> None:
    statement = upsert_statement(connection.dialect.name, table, changed_by)
    if rows:
        connection.execute(statement, list(rows))


def upsert_statement(dialect: str, table: Table, changed_by: Sequence[str]) -> sqlite.Insert | postgresql.Insert:
    """Inserts rows; one that is there is replaced only where a column of `changed_by` differs."""
    statement: Any = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    keys = [column.name for column in table.primary_key.columns]
    upsert: sqlite.Insert | postgresql.Insert
    if changed_by:
        given = statement.excluded
        upsert = statement.on_conflict_do_update(
            index_elements=keys,
            set_={column.name: given[column.name] for column in table.columns if column.name not in keys},
            where=or_(*(table.c[name] != given[name] for name in changed_by)),
        )
    else:
        upsert = statement.on_conflict_do_nothing(index_elements=keys)
    return upsert
