"""Roll-outs in the service's database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from services.kit.clock import Clock
from services.kit.errors import AbortedError
from services.kit.storage.database import one_at_a_time, read_only, translate_database_errors
from services.pipeline.adapters.audit_store import add
from services.pipeline.adapters.rollout_rows import rollout_of, rollout_row
from services.pipeline.adapters.rollout_tables import rollouts
from services.pipeline.domain.audit import AuditEntry
from services.pipeline.domain.rollout import Rollout, RolloutState

_FINAL = [state.value for state in RolloutState if state.final]


class SqlRolloutStore:
    """Implements `RolloutStore` of `services.pipeline.app.rollout_ports`. Thread-safe."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock, self._reads = engine, clock, read_only(engine)

    def create(self, rollout: Rollout, entry: AuditEntry) -> Rollout:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, "rollouts")
            same = select(rollouts).where(rollouts.c.rollout_id == rollout.rollout_id)
            known = connection.execute(same).mappings().first()
            if known is not None:
                return rollout_of(known)
            connection.execute(insert(rollouts).values(rollout_row(rollout)))
            add(connection, [entry])
        return rollout

    def get(self, name: str) -> Rollout | None:
        """See the port."""
        found = self._read(select(rollouts).where(rollouts.c.rollout_id == name.removeprefix("rollouts/")))
        return found[0] if found else None

    def page(self, model: str, before: str, limit: int) -> Sequence[Rollout]:
        """See the port."""
        query = select(rollouts).order_by(rollouts.c.rollout_id.desc()).limit(limit)
        if model:
            query = query.where(rollouts.c.model == model)
        return self._read(query.where(rollouts.c.rollout_id < before) if before else query)

    def unfinished(self) -> Sequence[Rollout]:
        """See the port."""
        where = or_(rollouts.c.state.not_in(_FINAL), rollouts.c.applied.is_(False))
        return self._read(select(rollouts).where(where).order_by(rollouts.c.rollout_id))

    def update(self, rollout: Rollout, entry: AuditEntry | None = None) -> Rollout:
        """See the port."""
        changed = replace(rollout, revision=rollout.revision + 1, update_time=self._clock.now())
        same = (rollouts.c.rollout_id == rollout.rollout_id) & (rollouts.c.revision == rollout.revision)
        try:
            with translate_database_errors(), self._engine.begin() as connection:
                found = connection.execute(update(rollouts).where(same).values(rollout_row(changed)))
                if found.rowcount != 1:
                    raise AbortedError(
                        f"{rollout.name} was changed meanwhile. Read it again.", reason="ROLLOUT_CHANGED"
                    )
                if entry is not None:
                    add(connection, [entry])
        except IntegrityError as error:
            raise AbortedError(f"Another roll-out of {rollout.model} is at work.", reason="ROLLOUT_AT_WORK") from error
        return changed

    def _read(self, query: Any) -> list[Rollout]:
        with translate_database_errors(), self._reads.connect() as connection:
            return [rollout_of(row) for row in connection.execute(query).mappings()]
