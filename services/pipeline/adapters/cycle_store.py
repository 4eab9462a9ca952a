"""Cycles in the service's database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from services.kit.errors import AlreadyExistsError
from services.kit.storage.database import read_only, translate_database_errors
from services.pipeline.adapters.rows import cycle_of, cycle_row
from services.pipeline.adapters.tables import cycles
from services.pipeline.domain.cycle import Cycle, CycleState

# A cycle that failed or was cancelled has learnt nothing.
_LEARNT = [
    state.value for state in (CycleState.RUNNING, CycleState.SUCCEEDED, CycleState.REJECTED, CycleState.UNCHANGED)
]


class SqlCycleStore:
    """Implements `services.pipeline.app.ports.CycleStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def create(self, cycle: Cycle) -> Cycle:
        """See the port."""
        try:
            with translate_database_errors(), self._engine.begin() as connection:
                connection.execute(insert(cycles).values({**cycle_row(cycle), "cancel_requested": False}))
        except IntegrityError as error:
            known = self.by_request(cycle.request_id) if cycle.request_id else None
            if known is None:
                raise AlreadyExistsError(
                    f"A cycle of {cycle.pipeline} was started at the same time. Retry.", reason="CYCLE_AT_WORK"
                ) from error
            return known
        return cycle

    def get(self, name: str) -> Cycle | None:
        """See the port."""
        _, pipeline, _, cycle_id = name.split("/")
        return self._one(select(cycles).where(cycles.c.cycle_id == cycle_id, cycles.c.pipeline == pipeline))

    def by_request(self, request_id: str) -> Cycle | None:
        """See the port."""
        return self._one(select(cycles).where(cycles.c.request_id == request_id))

    def at_work(self, pipeline: str) -> Cycle | None:
        """See the port."""
        return self._one(select(cycles).where(cycles.c.at_work == pipeline))

    def page(self, pipeline: str, before: str, limit: int) -> Sequence[Cycle]:
        """See the port."""
        query = select(cycles).order_by(cycles.c.cycle_id.desc()).limit(limit)
        if pipeline:
            query = query.where(cycles.c.pipeline == pipeline)
        return self._read(query.where(cycles.c.cycle_id < before) if before else query)

    def learnt(self, pipeline: str) -> Cycle | None:
        """See the port."""
        where = (cycles.c.pipeline == pipeline, cycles.c.state.in_(_LEARNT))
        # Of those only a running one, the newest, may have no data set yet.
        newest = self._read(select(cycles).where(*where).order_by(cycles.c.cycle_id.desc()).limit(2))
        return next((cycle for cycle in newest if cycle.dataset_version is not None), None)

    def changed(self, pipeline: str, since: datetime) -> Sequence[Cycle]:
        """See the port."""
        # A running cycle need not have changed lately.
        recent = or_(cycles.c.update_time > since, cycles.c.at_work.is_not(None))
        where = (cycles.c.pipeline == pipeline, recent)
        return self._read(select(cycles).where(*where).order_by(cycles.c.cycle_id.desc()))

    def unfinished(self) -> Sequence[Cycle]:
        """See the port."""
        where = or_(cycles.c.at_work.is_not(None), cycles.c.announced.is_(False))
        return self._read(select(cycles).where(where).order_by(cycles.c.cycle_id))

    def update(self, cycle: Cycle) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(update(cycles).where(cycles.c.cycle_id == cycle.cycle_id).values(cycle_row(cycle)))

    def request_cancel(self, name: str) -> None:
        """See the port."""
        statement = update(cycles).where(cycles.c.cycle_id == name.rpartition("/")[2])
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(statement.values(cancel_requested=True))

    def _one(self, query: Any) -> Cycle | None:
        return next(iter(self._read(query)), None)

    def _read(self, query: Any) -> list[Cycle]:
        with translate_database_errors(), self._reads.connect() as connection:
            return [cycle_of(row) for row in connection.execute(query).mappings()]
