"""Raw records, the claims of their origins, and verdicts in the service's database."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    Text,
    and_,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    not_,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import RowMapping

from services.cleaning.adapters.record_rows import PLAIN, RecordRows
from services.cleaning.adapters.tables import import_records, model_answers, raw_records, record_claims, verdicts
from services.cleaning.adapters.vault import Vault
from services.cleaning.app.ports import Announcement, Arrival, CollectedRecord
from services.cleaning.domain.dataset import Dataset, DatasetSpec, ImportCount
from services.cleaning.domain.originals import NOT_KEPT
from services.cleaning.domain.record import (
    FEEDBACK_PREFIX,
    Erased,
    Keeping,
    RawRecord,
    RecordKey,
    Verdict,
    Withdrawal,
)
from services.kit.storage.database import forget_deleted, read_only, translate_database_errors
from services.kit.storage.row_writer import RowWriter, Values

_Key = TypeVar("_Key", RecordKey, str)

_VERDICT_COLUMNS = [column.label(f"verdict_{column.name}") for column in verdicts.c]
_KEY = tuple_(raw_records.c.source, raw_records.c.record_id)
# Of two contents of a record, the one with the greater triple of these columns counts.
_RECENCY = ("event_time", "arrival", "content_digest")
# Instead of a digest, and greater than any.
_ERASED = "~erased"
# Keys in one statement. Each takes two parameters, and SQLite allows 32,766.
_KEYS_AT_ONCE = 1000


class SqlRecordStore:
    """Implements `services.cleaning.app.ports.RecordStore`. Thread-safe."""

    def __init__(self, engine: Engine, vault: Vault | None = None) -> None:
        """`vault`: for records that are stored encrypted, of which there are none without it."""
        self._engine, self._reads = engine, read_only(engine)
        vault = vault or Vault()
        self._rows = RecordRows(vault)
        # What was encrypted with a key that is missing waits for it.
        self._keys = sorted({"", *vault.key_ids})
        dialect = engine.dialect
        self._raw = RowWriter(dialect, raw_records, _raw_statement(dialect.name))
        self._claims = RowWriter(dialect, record_claims, _claim_statement(dialect.name))
        self._imports = RowWriter(
            dialect, import_records, upsert_statement(dialect.name, import_records, changed_by=["withdrawn"])
        )
        judged = upsert_statement(dialect.name, verdicts, changed_by=["recipe_digest", "content_digest", "originals"])
        self._verdicts = RowWriter(dialect, verdicts, judged)

    def collect(self, arrivals: Sequence[Arrival], withdrawals: Sequence[Withdrawal], found: Sequence[Verdict]) -> None:
        """See the port."""
        newest: dict[RecordKey, Arrival] = {}
        for arrival in arrivals:
            known = newest.get(arrival.record.key)
            if known is None or known.record.recency < arrival.record.recency:
                newest[arrival.record.key] = arrival
        records = [arrival.record for arrival in arrivals]
        # Sorted by key, so that two members of the group never deadlock on each other's rows.
        raw = [self._raw.values(self._rows.raw_row(newest[key].record)) for key in sorted(newest)]
        claims = [self._claims.values(row) for row in _claim_rows(records, withdrawals)]
        imports = [self._imports.values(row) for row in _import_rows(records, withdrawals)]
        judged = self._judged(found, {key: arrival.traceparent for key, arrival in newest.items()})
        with translate_database_errors(), self._engine.begin() as connection:
            self._raw.write(connection, raw)
            self._claims.write(connection, claims)
            _settle_withdrawn(connection, {*newest, *(item.key for item in withdrawals)})
            self._imports.write(connection, imports)
            self._save(connection, judged)

    def save_verdicts(self, found: Sequence[Verdict]) -> None:
        """See the port."""
        judged = self._judged(found, {})
        with translate_database_errors(), self._engine.begin() as connection:
            self._save(connection, judged)

    def _judged(self, found: Sequence[Verdict], traces: Mapping[RecordKey, str]) -> list[tuple[Verdict, Values]]:
        return [
            (verdict, self._verdicts.values(self._rows.verdict_row(verdict, traces.get(verdict.key, ""))))
            for verdict in found
        ]

    def _save(self, connection: Connection, judged: Sequence[tuple[Verdict, Values]]) -> None:
        present = _present_digests(connection, {verdict.key for verdict, _ in judged})
        rows = [row for verdict, row in judged if present.get(verdict.key) == verdict.content_digest]
        self._verdicts.write(connection, rows)

    def stale(self, dataset: Dataset, after: RecordKey, limit: int) -> Sequence[RawRecord]:
        """See the port."""
        fresh = and_(*_verdict_on_content(dataset.name), verdicts.c.recipe_digest == dataset.recipe_digest)
        query = (
            select(raw_records)
            .outerjoin(verdicts, fresh)
            .where(
                tuple_(*after) < _KEY,
                # Not the bare column: SQLite would use its index and read each source from the beginning.
                (raw_records.c.source + "").in_(dataset.spec.sources),
                *_of_tenants(dataset.spec.tenants, dataset.spec.feedback_sources),
                raw_records.c.withdrawn == false(),
                raw_records.c.originals != Keeping.NONE.value,
                raw_records.c.key_id.in_(self._keys),
                verdicts.c.record_id.is_(None),
            )
            .order_by(raw_records.c.source, raw_records.c.record_id)
            .limit(limit)
        )
        with translate_database_errors(), self._reads.connect() as connection:
            return [self._rows.raw_record(row) for row in connection.execute(query).mappings()]

    def announcements(self, limit: int, of: Collection[RecordKey] | None = None) -> Sequence[Announcement]:
        """See the port."""
        # `= 0`, not `IS 0`: only then does SQLite use the partial index of unannounced verdicts.
        unannounced = (verdicts.c.announced == false(), verdicts.c.key_id.in_(self._keys))
        query = select(verdicts).where(*unannounced).order_by(verdicts.c.record_id).limit(limit)
        found: list[RowMapping] = []
        with translate_database_errors(), self._reads.connect() as connection:
            if of is None:
                found += connection.execute(query).mappings()
            else:
                for part in key_parts(of):
                    theirs = tuple_(verdicts.c.source, verdicts.c.record_id).in_(part)
                    found += connection.execute(query.where(theirs)).mappings()
        return [Announcement(self._rows.verdict(row), row["traceparent"]) for row in found[:limit]]

    def mark_announced(self, announcements: Sequence[Announcement]) -> None:
        """See the port."""
        keys = [
            {
                "key_dataset": item.verdict.dataset,
                "key_source": item.verdict.source,
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

    def import_counts(self, imports: Sequence[str]) -> Mapping[str, ImportCount]:
        """See the port."""
        withdrawn = func.sum(case((import_records.c.withdrawn, 1), else_=0))
        query = (
            select(import_records.c.import_name, func.count(), withdrawn)
            .where(import_records.c.import_name.in_(imports))
            .group_by(import_records.c.import_name)
        )
        with translate_database_errors(), self._reads.connect() as connection:
            return {row[0]: ImportCount(row[1] - row[2], row[2]) for row in connection.execute(query)}

    def count(self, sources: Sequence[str], after: int, tenants: Sequence[str] = ()) -> tuple[int, int]:
        """See the port."""
        theirs = (raw_records.c.source.in_(list(sources)), *_of_tenants(tenants))
        newest = select(func.max(raw_records.c.arrival)).where(*theirs)
        arrived = (*theirs, raw_records.c.arrival > after, raw_records.c.withdrawn == false())
        with translate_database_errors(), self._reads.connect() as connection:
            count = connection.execute(select(func.count()).select_from(raw_records).where(*arrived)).scalar_one()
            return count, connection.execute(newest).scalar() or 0

    def content_digests(self, dataset: str, spec: DatasetSpec, recipe_digest: str) -> Sequence[tuple[str, str]]:
        """See the port."""
        cleaned = exists().where(*_verdict_on_content(dataset), verdicts.c.recipe_digest == recipe_digest)
        lacking = and_(raw_records.c.originals == Keeping.NONE.value, not_(cleaned.correlate(raw_records)))
        digest = case((lacking, NOT_KEPT.reason), else_=raw_records.c.content_digest)
        query = select(raw_records.c.record_id, digest).where(*_members(spec))
        with translate_database_errors(), self._reads.connect() as connection:
            return [(row[0], row[1]) for row in connection.execute(query)]

    def with_verdicts(self, dataset: str, spec: DatasetSpec) -> Sequence[tuple[RawRecord, Verdict | None]]:
        """See the port."""
        query = (
            select(raw_records, *_VERDICT_COLUMNS)
            .outerjoin(verdicts, and_(*_verdict_on_content(dataset)))
            .where(*_members(spec))
            .order_by(raw_records.c.source, raw_records.c.record_id)
        )
        with translate_database_errors(), self._reads.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            (
                self._rows.raw_record(row),
                self._rows.verdict(row, "verdict_") if row["verdict_record_id"] is not None else None,
            )
            for row in rows
        ]

    def erase(self, gone: Erased) -> int:
        """See the port."""
        # The form of JsonText; a quotation mark inside a value is escaped, so only the attribute itself matches.
        theirs = raw_records.c.attributes.cast(Text).contains(f'"feedback_person":"{gone.person}"', autoescape=True)
        of_feedback = (raw_records.c.source.startswith(FEEDBACK_PREFIX, autoescape=True),)
        columns = (raw_records.c.source, raw_records.c.record_id, raw_records.c.arrival)
        with translate_database_errors(), self._engine.begin() as connection:
            found = {tuple(row) for row in connection.execute(select(*columns).where(*of_feedback, theirs))}
            for ids in key_parts(gone.answers):
                query = select(*columns).where(*of_feedback, raw_records.c.record_id.in_(ids))
                left = query.where(raw_records.c.content_digest != _ERASED)
                found |= {tuple(row) for row in connection.execute(left)}
            for source, record_id, arrival in sorted(found):
                _erase(connection, source, record_id, arrival)
        # Also where an earlier call was killed before it came to this.
        forget_deleted(self._engine)
        return len(found)

    def records(self, record_id: str, source: str, limit: int) -> Sequence[CollectedRecord]:
        """See the port."""
        query = select(raw_records).where(raw_records.c.record_id == record_id)
        if source:
            query = query.where(raw_records.c.source == source)
        with translate_database_errors(), self._reads.connect() as connection:
            found = connection.execute(query.order_by(raw_records.c.source).limit(limit)).mappings().all()
            return [
                CollectedRecord(self._rows.raw_record(row), row["withdrawn"], self._verdicts_on(connection, row))
                for row in found
            ]

    def _verdicts_on(self, connection: Connection, raw: RowMapping) -> Sequence[Verdict]:
        theirs = (verdicts.c.source == raw["source"], verdicts.c.record_id == raw["record_id"])
        query = select(verdicts).where(*theirs)
        return [self._rows.verdict(row) for row in connection.execute(query.order_by(verdicts.c.dataset)).mappings()]


def _erase(connection: Connection, source: str, record_id: str, arrival: int) -> None:
    def of(table: Table) -> ColumnElement[bool]:
        return and_(table.c.source == source, table.c.record_id == record_id)

    # A repeat of the message is not newer than this, and its claim is older.
    empty = {"text": "", "attributes": {}, "content_digest": _ERASED, "withdrawn": True, **PLAIN}
    connection.execute(update(raw_records).where(of(raw_records)).values(empty))
    connection.execute(update(record_claims).where(of(record_claims)).values(held=False, arrival=arrival + 1))
    connection.execute(delete(verdicts).where(of(verdicts)))
    connection.execute(delete(model_answers).where(of(model_answers)))


def keys_in_use(engine: Engine) -> frozenset[str]:
    """Ids of the keys that rows were encrypted with."""
    with translate_database_errors(), read_only(engine).connect() as connection:
        return frozenset(
            key
            for table in (raw_records, verdicts)
            for key in connection.execute(select(table.c.key_id).where(table.c.key_id != "").distinct()).scalars()
        )


def _members(spec: DatasetSpec) -> tuple[ColumnElement[bool], ...]:
    """Which records belong to a data set."""
    tenants = _of_tenants(spec.tenants, spec.feedback_sources)
    return raw_records.c.source.in_(spec.sources), *tenants, raw_records.c.withdrawn == false()


def _of_tenants(tenants: Sequence[str], feedback_sources: Sequence[str] = ()) -> tuple[ColumnElement[bool], ...]:
    """See `DatasetSpec.takes`."""
    if not tenants:
        return ()
    return (or_(raw_records.c.tenant.in_(tenants), raw_records.c.source.in_(feedback_sources)),)


def _verdict_on_content(dataset: str) -> tuple[ColumnElement[bool], ...]:
    """Which verdict of a data set is on the present content of a record."""
    return (
        verdicts.c.source == raw_records.c.source,
        verdicts.c.record_id == raw_records.c.record_id,
        verdicts.c.dataset == dataset,
        verdicts.c.content_digest == raw_records.c.content_digest,
    )


def _raw_statement(dialect: str) -> sqlite.Insert | postgresql.Insert:
    """Inserts contents, or replaces less recent ones; does not change whether a record is withdrawn."""
    statement = _insert(dialect, raw_records)
    given = statement.excluded
    kept = ("source", "record_id", "withdrawn")
    upsert: sqlite.Insert | postgresql.Insert = statement.on_conflict_do_update(
        index_elements=["source", "record_id"],
        set_={column.name: given[column.name] for column in raw_records.columns if column.name not in kept},
        where=tuple_(*(raw_records.c[name] for name in _RECENCY)) < tuple_(*(given[name] for name in _RECENCY)),
    )
    return upsert


def _claim_statement(dialect: str) -> sqlite.Insert | postgresql.Insert:
    """Inserts what origins say about records, or replaces what they said before."""
    statement = _insert(dialect, record_claims)
    given = statement.excluded
    upsert: sqlite.Insert | postgresql.Insert = statement.on_conflict_do_update(
        index_elements=["source", "record_id", "origin"],
        set_={"arrival": given.arrival, "held": given.held},
        where=tuple_(record_claims.c.arrival, record_claims.c.held) < tuple_(given.arrival, given.held),
    )
    return upsert


def _claim_rows(records: Sequence[RawRecord], withdrawals: Sequence[Withdrawal]) -> list[dict[str, Any]]:
    latest: dict[tuple[RecordKey, str], tuple[int, bool]] = {}
    # A record without an origin, from an earlier release, gets no claim: nothing could ever withdraw it.
    said = [((r.key, r.origin), (r.arrival, True)) for r in records if r.origin or not r.import_name]
    said += [((w.key, w.origin), (w.arrival, False)) for w in withdrawals]
    for claim, word in said:
        latest[claim] = max(word, latest.get(claim, word))
    return [
        {"source": source, "record_id": record_id, "origin": origin, "arrival": arrival, "held": held}
        for ((source, record_id), origin), (arrival, held) in sorted(latest.items())
    ]


def _settle_withdrawn(connection: Connection, keys: Iterable[RecordKey]) -> None:
    """Updates which records are withdrawn: those that have claims, none of which is held."""
    claim = and_(record_claims.c.source == raw_records.c.source, record_claims.c.record_id == raw_records.c.record_id)
    withdrawn = and_(
        exists().where(claim).correlate(raw_records),
        not_(exists().where(claim, record_claims.c.held).correlate(raw_records)),
    )
    for part in key_parts(keys):
        statement = update(raw_records).where(_KEY.in_(part), raw_records.c.withdrawn != withdrawn)
        connection.execute(statement.values(withdrawn=withdrawn))


def _import_rows(records: Sequence[RawRecord], withdrawals: Sequence[Withdrawal]) -> list[dict[str, Any]]:
    """What imports brought and withdrew. If an import did both, because it ran twice, the latest counts."""
    latest: dict[tuple[str, str], tuple[int, bool]] = {}
    said = [((r.import_name, r.record_id), (r.arrival, False)) for r in records if r.import_name]
    said += [((w.import_name, w.record_id), (w.arrival, True)) for w in withdrawals]
    for key, word in said:
        latest[key] = max(word, latest.get(key, word))
    return [
        {"import_name": name, "record_id": record_id, "withdrawn": withdrawn}
        for (name, record_id), (_, withdrawn) in sorted(latest.items())
    ]


def _present_digests(connection: Connection, keys: Iterable[RecordKey]) -> Mapping[RecordKey, str]:
    """Content digests of those records that exist and are not withdrawn."""
    found: dict[RecordKey, str] = {}
    columns = (raw_records.c.source, raw_records.c.record_id, raw_records.c.content_digest)
    for part in key_parts(keys):
        query = select(*columns).where(_KEY.in_(part), raw_records.c.withdrawn == false())
        found |= {(row[0], row[1]): row[2] for row in connection.execute(query)}
    return found


def key_parts(keys: Iterable[_Key]) -> Iterable[list[_Key]]:
    """Keys in order, as many at a time as one statement takes."""
    rest = iter(sorted(keys))
    while part := list(islice(rest, _KEYS_AT_ONCE)):
        yield part


def _insert(dialect: str, table: Table) -> Any:
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def upsert_statement(dialect: str, table: Table, changed_by: Sequence[str]) -> sqlite.Insert | postgresql.Insert:
    """Inserts rows; an existing row is replaced only if a column of `changed_by` differs."""
    statement = _insert(dialect, table)
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
