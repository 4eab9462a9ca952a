"""Triggers and what they started, in the service's database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, Table, delete, insert, or_, select, update

from services.kit.storage.database import one_at_a_time, read_only, translate_database_errors
from services.pipeline.adapters.audit_store import add
from services.pipeline.adapters.rows import spec_of, spec_row
from services.pipeline.adapters.tables import alerts, trigger_firings, triggers
from services.pipeline.app.trigger_ports import Firing, Trigger
from services.pipeline.domain.audit import MESH, AuditEntry
from services.pipeline.domain.audit import entry as audit_entry
from services.pipeline.domain.cycle import PipelineSpec
from services.pipeline.domain.triggers import Alert

_LOCK = "triggers"


class SqlTriggerStore:
    """Implements `services.pipeline.app.trigger_ports.TriggerStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def put(self, spec: PipelineSpec, now: datetime) -> Trigger | None:
        """See the port."""
        where = triggers.c.pipeline == spec.name
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, _LOCK)
            row = connection.execute(select(triggers).where(where)).mappings().first()
            if spec.triggers is None:
                connection.execute(delete(triggers).where(where))
                connection.execute(delete(alerts).where(alerts.c.pipeline == spec.name))
                return None
            if row is None:
                made = Trigger(spec, now)
                values = {"pipeline": spec.name, "paused": False, "pause_reason": "", "met_since": None, "cursors": {}}
                connection.execute(insert(triggers).values({**values, "spec": spec_row(spec), "scheduled_until": now}))
                return made
            before = _trigger(row)
            same = before.spec.triggers is not None and (
                (before.spec.triggers.schedule, before.spec.triggers.time_zone)
                == (spec.triggers.schedule, spec.triggers.time_zone)
            )
            until = before.scheduled_until if same else now
            connection.execute(update(triggers).where(where).values(spec=spec_row(spec), scheduled_until=until))
            return Trigger(spec, until, before.paused, before.pause_reason, before.met_since, before.cursors)

    def get(self, pipeline: str) -> Trigger | None:
        """See the port."""
        return next(iter(self._read(select(triggers).where(triggers.c.pipeline == pipeline))), None)

    def page(self, after: str, limit: int) -> Sequence[Trigger]:
        """See the port."""
        return self._read(
            select(triggers).where(triggers.c.pipeline > after).order_by(triggers.c.pipeline).limit(limit)
        )

    def pause(self, pipeline: str, paused: bool, reason: str, by: AuditEntry) -> None:
        """See the port."""
        why = reason if paused else ""
        other = or_(triggers.c.paused.is_not(paused), triggers.c.pause_reason != why)
        change = update(triggers).where(triggers.c.pipeline == pipeline, other)
        with translate_database_errors(), self._engine.begin() as connection:
            if connection.execute(change.values(paused=paused, pause_reason=why)).rowcount:
                add(connection, [by])

    def note(self, pipeline: str, met_since: datetime | None, cursors: Mapping[str, int]) -> None:
        """See the port."""
        self._update(triggers, pipeline, met_since=met_since, cursors=dict(cursors))

    def fire(self, firing: Firing, scheduled_until: datetime) -> bool:
        """See the port."""
        where = (triggers.c.pipeline == firing.pipeline) & triggers.c.paused.is_(False)
        values = {"scheduled_until": scheduled_until, "met_since": None}
        row = {
            "request_id": firing.request_id,
            "pipeline": firing.pipeline,
            "fire_time": firing.fire_time,
            "reasons": list(firing.reasons),
            "spec": spec_row(firing.spec),
            "cycle": "",
            "error": "",
        }
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, _LOCK)
            if not connection.execute(update(triggers).where(where).values(values)).rowcount:
                return False
            connection.execute(insert(trigger_firings).values(row))
            add(connection, [_entry(firing, "trigger.fire", firing.fire_time, " ".join(firing.reasons))])
            return True

    def report(self, pipeline: str, alert: Alert, now: datetime) -> None:
        """See the port."""
        same = (alerts.c.pipeline == pipeline, alerts.c.fingerprint == alert.fingerprint)
        row = {"name": alert.name, "start_time": alert.start_time, "summary": alert.summary, "resolved": alert.resolved}
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, _LOCK)
            known = connection.execute(select(alerts.c.start_time).where(*same)).scalar()
            if known is None:
                values = {**row, "pipeline": pipeline, "fingerprint": alert.fingerprint, "report_time": now}
                connection.execute(insert(alerts).values(values))
            elif known < alert.start_time:
                connection.execute(update(alerts).where(*same).values(**row, report_time=now))
            elif known == alert.start_time and alert.resolved:
                connection.execute(update(alerts).where(*same).values(resolved=True))

    def alerts(self, pipeline: str, since: datetime | None) -> Sequence[Alert]:
        """See the port."""
        query = select(alerts).where(alerts.c.pipeline == pipeline).order_by(alerts.c.start_time)
        with translate_database_errors(), self._reads.connect() as connection:
            return [
                Alert(
                    name=row["name"],
                    fingerprint=row["fingerprint"],
                    start_time=row["start_time"],
                    summary=row["summary"],
                    resolved=row["resolved"],
                    answered=since is not None and row["report_time"] <= since,
                )
                for row in connection.execute(query).mappings()
            ]

    def pending(self) -> Sequence[Firing]:
        """See the port."""
        query = select(trigger_firings).where(trigger_firings.c.cycle == "", trigger_firings.c.error == "")
        return self._firings(query.order_by(trigger_firings.c.fire_time))

    def started(self, firing: Firing, cycle: str, now: datetime) -> None:
        """See the port."""
        entry = _entry(firing, "cycle.start", now, " ".join(firing.reasons), cycle=cycle)
        self._close(firing, entry, cycle=cycle)

    def refused(self, firing: Firing, error: str, now: datetime) -> None:
        """See the port."""
        self._close(firing, _entry(firing, "trigger.refuse", now, f"No cycle could be started: {error}"), error=error)

    def firings(self, pipeline: str, limit: int) -> Sequence[Firing]:
        """See the port."""
        query = select(trigger_firings).where(trigger_firings.c.pipeline == pipeline)
        newest = (trigger_firings.c.fire_time.desc(), trigger_firings.c.request_id.desc())
        return self._firings(query.order_by(*newest).limit(limit))

    def _close(self, firing: Firing, entry: AuditEntry, **values: str) -> None:
        column = trigger_firings.c
        pending = (column.request_id == firing.request_id, column.cycle == "", column.error == "")
        with translate_database_errors(), self._engine.begin() as connection:
            if connection.execute(update(trigger_firings).where(*pending).values(**values)).rowcount:
                add(connection, [entry])

    def _update(self, table: Table, key: str, **values: Any) -> None:
        (column,) = table.primary_key.columns
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(update(table).where(column == key).values(values))

    def _read(self, query: Any) -> list[Trigger]:
        with translate_database_errors(), self._reads.connect() as connection:
            return [_trigger(row) for row in connection.execute(query).mappings()]

    def _firings(self, query: Any) -> list[Firing]:
        with translate_database_errors(), self._reads.connect() as connection:
            return [
                Firing(
                    pipeline=row["pipeline"],
                    request_id=row["request_id"],
                    fire_time=row["fire_time"],
                    reasons=tuple(row["reasons"]),
                    spec=spec_of(row["spec"]),
                    cycle=row["cycle"],
                    error=row["error"],
                )
                for row in connection.execute(query).mappings()
            ]


def _entry(firing: Firing, action: str, now: datetime, why: str, **facts: str) -> AuditEntry:
    resource = f"pipelines/{firing.pipeline}"
    return audit_entry(now, MESH, action, resource, why, {"request_id": firing.request_id, **facts})


def _trigger(row: Mapping[Any, Any]) -> Trigger:
    return Trigger(
        spec=spec_of(row["spec"]),
        scheduled_until=row["scheduled_until"],
        paused=row["paused"],
        pause_reason=row["pause_reason"],
        met_since=row["met_since"],
        cursors=row["cursors"],
    )
