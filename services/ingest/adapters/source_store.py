"""Declared sources and their collections, in the service's database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, delete, exists, insert, select, update
from sqlalchemy.engine import RowMapping

from services.ingest.adapters.rows import spec_json, spec_of
from services.ingest.adapters.tables import (
    crawled_pages,
    declared_sources,
    import_requests,
    imports,
    source_collections,
    source_positions,
    source_tenants,
)
from services.ingest.domain.declared_source import Collection, DeclaredSource, Timetable
from services.ingest.domain.source_import import ImportState, SourcePolicy
from services.kit.errors import AbortedError, FailedPreconditionError
from services.kit.failure import Failure
from services.kit.storage.database import one_at_a_time, read_only, translate_database_errors

_LOCK = "declared_sources"
_KEPT = 100
_SOURCES, _ORDERS = declared_sources.c, source_collections.c
_RUNNING = imports.c.state == ImportState.RUNNING.value


class SqlSourceStore:
    """Implements `services.ingest.app.source_ports.SourceStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def put(self, source: DeclaredSource) -> DeclaredSource:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, _LOCK)
            return _put(connection, source)

    def declare(self, pipeline: str, sources: Sequence[DeclaredSource]) -> Sequence[DeclaredSource]:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, _LOCK)
            for source in sources:
                _check_owner(_find(connection, source.spec.source), pipeline, source)
            declared = [_put(connection, source) for source in sources]
            _end_others(connection, pipeline, [source.spec.source for source in sources])
            return declared

    def get(self, source: str) -> DeclaredSource | None:
        """See the port."""
        found = self._read(select(declared_sources).where(_SOURCES.source == source, _SOURCES.deleted.is_(False)))
        return found[0] if found else None

    def paused(self, origin: str) -> DeclaredSource | None:
        """See the port."""
        paused = (_SOURCES.paused.is_(True), _SOURCES.deleted.is_(False))
        found = self._read(select(declared_sources).where(_SOURCES.origin == origin, *paused))
        return found[0] if found else None

    def page(self, after: str, limit: int) -> Sequence[DeclaredSource]:
        """See the port."""
        query = select(declared_sources).where(_SOURCES.source > after, _SOURCES.deleted.is_(False))
        return self._read(query.order_by(_SOURCES.source).limit(limit))

    def governed(self) -> Sequence[DeclaredSource]:
        """See the port."""
        found = self._read(select(declared_sources).where(_SOURCES.deleted.is_(False)))
        return [source for source in found if source.spec.policy != SourcePolicy()]

    def first_tenant(self, source: str, tenant: str) -> str:
        """See the port."""
        query = select(source_tenants.c.tenant).where(source_tenants.c.source == source)
        with translate_database_errors(), self._reads.connect() as connection:
            known = connection.execute(query).scalar()
        if known is not None:
            return str(known)
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, f"tenant of {source}")
            known = connection.execute(query).scalar()
            if known is None:
                connection.execute(insert(source_tenants).values(source=source, tenant=tenant))
            return str(known or tenant)

    def pause(self, source: str, paused: bool, reason: str, now: datetime) -> None:
        """See the port."""
        other = (_SOURCES.paused.is_not(paused)) | (_SOURCES.pause_reason != reason)
        change = update(declared_sources).where(_SOURCES.source == source, other)
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(change.values(paused=paused, pause_reason=reason, update_time=now))

    def delete(self, source: str, now: datetime) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, _LOCK)
            found = _find(connection, source)
            if found is None or found["deleted"]:
                return
            connection.execute(update(declared_sources).where(_SOURCES.source == source).values(deleted=True))
            running = update(imports).where(imports.c.origin == found["origin"], _RUNNING)
            connection.execute(running.values(state=ImportState.CANCELLED.value, update_time=now))

    def deleted(self) -> Sequence[DeclaredSource]:
        """See the port."""
        return self._read(select(declared_sources).where(_SOURCES.deleted.is_(True)))

    def forget(self, source: str) -> bool:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, _LOCK)
            found = _find(connection, source)
            if found is None or not found["deleted"]:
                return True
            origin = found["origin"]
            if connection.execute(select(imports.c.name).where(imports.c.origin == origin, _RUNNING)).first():
                return False
            connection.execute(delete(crawled_pages).where(crawled_pages.c.origin == origin))
            connection.execute(delete(source_positions).where(source_positions.c.origin == origin))
            _forget_orders_of(connection, [source])
            connection.execute(delete(declared_sources).where(_SOURCES.source == source))
            return True

    def due(self, now: datetime) -> Sequence[DeclaredSource]:
        """See the port."""
        collected = exists().where(imports.c.origin == _SOURCES.origin, _RUNNING)
        ordered = exists().where(_ORDERS.source == _SOURCES.source, _ORDERS.pending.is_(True))
        query = select(declared_sources).where(*_ACTIVE, _SOURCES.due_time <= now, ~collected, ~ordered)
        return self._read(query.order_by(_SOURCES.due_time))

    def fire(self, order: Collection, due: datetime, following: datetime | None) -> bool:
        """See the port."""
        where = (_SOURCES.source == order.spec.source, _SOURCES.due_time == due, *_ACTIVE)
        with translate_database_errors(), self._engine.begin() as connection:
            if not connection.execute(update(declared_sources).where(*where).values(due_time=following)).rowcount:
                return False
            connection.execute(insert(source_collections).values(_order_row(order)))
            return True

    def order(self, order: Collection) -> Collection | None:
        """See the port."""
        same = _ORDERS.order_id == order.order_id
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, _LOCK)
            known = connection.execute(select(source_collections).where(same)).mappings().first()
            if known is not None and known["import_name"]:
                return _order(known)
            active = select(_SOURCES.source).where(_SOURCES.source == order.spec.source, *_ACTIVE)
            if connection.execute(active).first() is None:
                return None
            if known is not None:
                connection.execute(update(source_collections).where(same).values(pending=True, failure=None))
                return replace(_order(known), failure=None)
            connection.execute(insert(source_collections).values(_order_row(order)))
            return order

    def pending(self) -> Sequence[Collection]:
        """See the port."""
        query = select(source_collections).join(declared_sources, _SOURCES.source == _ORDERS.source)
        return self._orders(query.where(_ORDERS.pending.is_(True), *_ACTIVE).order_by(_ORDERS.order_time))

    def close(self, ended: Collection) -> None:
        """See the port."""
        pending = (_ORDERS.order_id == ended.order_id, _ORDERS.pending.is_(True))
        values = {name: _order_row(ended)[name] for name in ("pending", "import_name", "reused", "failure")}
        mine = _ORDERS.source == ended.spec.source
        newest = (_ORDERS.order_time.desc(), _ORDERS.order_id.desc())
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(update(source_collections).where(*pending).values(values))
            old = select(_ORDERS.order_id).where(mine).order_by(*newest).offset(_KEPT).limit(_KEPT)
            _forget_orders(connection, connection.execute(old).scalars().all())

    def collections(self, source: str, limit: int) -> Sequence[Collection]:
        """See the port."""
        query = select(source_collections).where(_ORDERS.source == source)
        return self._orders(query.order_by(_ORDERS.order_time.desc(), _ORDERS.order_id.desc()).limit(limit))

    def _read(self, query: Any) -> list[DeclaredSource]:
        with translate_database_errors(), self._reads.connect() as connection:
            return [_source(row) for row in connection.execute(query).mappings()]

    def _orders(self, query: Any) -> list[Collection]:
        with translate_database_errors(), self._reads.connect() as connection:
            return [_order(row) for row in connection.execute(query).mappings()]


_ACTIVE = (_SOURCES.paused.is_(False), _SOURCES.deleted.is_(False))


def _end_others(connection: Connection, pipeline: str, kept: Sequence[str]) -> None:
    """Ends what a pipeline declared earlier, where no other pipeline declares it."""
    query = select(_SOURCES.source, _SOURCES.pipelines).where(_SOURCES.source.not_in(kept), _SOURCES.deleted.is_(False))
    gone = []
    for source, pipelines in connection.execute(query).all():
        if pipeline not in pipelines:
            continue
        if others := [each for each in pipelines if each != pipeline]:
            mine = update(declared_sources).where(_SOURCES.source == source)
            connection.execute(mine.values(pipelines=others))
        else:
            gone.append(source)
    # What they brought and how far they were read stays: the pipeline may still import them.
    _forget_orders_of(connection, gone)
    connection.execute(delete(declared_sources).where(_SOURCES.source.in_(gone)))


def _find(connection: Connection, source: str) -> RowMapping | None:
    return connection.execute(select(declared_sources).where(_SOURCES.source == source)).mappings().first()


def _forget_orders_of(connection: Connection, sources: Sequence[str]) -> None:
    orders = select(_ORDERS.order_id).where(_ORDERS.source.in_(sources))
    _forget_orders(connection, connection.execute(orders).scalars().all())


def _forget_orders(connection: Connection, order_ids: Sequence[str]) -> None:
    """Removes orders with the answers that creating their imports was given."""
    for begin in range(0, len(order_ids), _KEPT):
        part = order_ids[begin : begin + _KEPT]
        connection.execute(delete(source_collections).where(_ORDERS.order_id.in_(part)))
        connection.execute(delete(import_requests).where(import_requests.c.request_id.in_(part)))


def _put(connection: Connection, source: DeclaredSource) -> DeclaredSource:
    row = _find(connection, source.spec.source)
    if row is None:
        connection.execute(insert(declared_sources).values(_source_row(source)))
        return source
    if row["deleted"]:
        raise AbortedError(f"{source.name} is being deleted; retry.", reason="SOURCE_DELETING", retry_after_s=1.0)
    known = _source(row)
    pipelines = tuple(dict.fromkeys((*known.pipelines, *source.pipelines)))
    if known.same_as(source) and pipelines == known.pipelines:
        return known
    changed = replace(
        source,
        create_time=known.create_time,
        pipelines=pipelines,
        paused=known.paused,
        pause_reason=known.pause_reason,
        due_time=known.due_time if source.timetable == known.timetable else source.due_time,
    )
    mine = _SOURCES.source == source.spec.source
    connection.execute(update(declared_sources).where(mine).values(_source_row(changed)))
    return changed


def _check_owner(row: RowMapping | None, pipeline: str, wanted: DeclaredSource) -> None:
    if row is None or row["deleted"]:
        return
    known = _source(row)
    others = [each for each in known.pipelines if each != pipeline]
    if others and not known.same_as(wanted):
        raise FailedPreconditionError(
            f"{wanted.name} is declared by pipelines/{others[0]} in another way. Give the source another name, or "
            "the same options and times in both files.",
            reason="SOURCE_OF_ANOTHER_PIPELINE",
            metadata={"source": wanted.name, "pipeline": f"pipelines/{others[0]}"},
        )


def _source_row(source: DeclaredSource) -> dict[str, Any]:
    return {
        "source": source.spec.source,
        "spec": spec_json(source.spec),
        "origin": source.spec.origin,
        "timetable": asdict(source.timetable) if source.timetable else None,
        "pipelines": list(source.pipelines),
        "paused": source.paused,
        "pause_reason": source.pause_reason,
        "create_time": source.create_time,
        "update_time": source.update_time,
        "due_time": source.due_time,
        "deleted": False,
    }


def _source(row: RowMapping) -> DeclaredSource:
    return DeclaredSource(
        spec=spec_of(row["spec"]),
        create_time=row["create_time"],
        update_time=row["update_time"],
        timetable=Timetable(**row["timetable"]) if row["timetable"] else None,
        pipelines=tuple(row["pipelines"]),
        paused=row["paused"],
        pause_reason=row["pause_reason"],
        due_time=row["due_time"],
    )


def _order_row(order: Collection) -> dict[str, Any]:
    return {
        "order_id": order.order_id,
        "source": order.spec.source,
        "spec": spec_json(order.spec),
        "order_time": order.order_time,
        "actor": order.actor,
        "pending": order.pending,
        "import_name": order.import_name,
        "reused": order.reused,
        "failure": asdict(order.failure) if order.failure else None,
    }


def _order(row: RowMapping) -> Collection:
    return Collection(
        order_id=row["order_id"],
        spec=spec_of(row["spec"]),
        order_time=row["order_time"],
        actor=row["actor"],
        import_name=row["import_name"],
        reused=row["reused"],
        failure=Failure(**row["failure"]) if row["failure"] else None,
    )
