"""Runs in the service's database."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, and_, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from services.kit.errors import AbortedError
from services.kit.failure import Failure
from services.kit.progress import Progress
from services.kit.storage.database import read_only, translate_database_errors
from services.training.adapters.tables import runs
from services.training.domain.report import LossPoint, Report
from services.training.domain.run import Run, RunState
from services.training.domain.training_spec import TrainingSpec
from services.training.engine.methods import stored_method

logger = logging.getLogger(__name__)
_UNFINISHED = (RunState.QUEUED.value, RunState.RUNNING.value)


class SqlRunStore:
    """Implements `services.training.app.ports.RunStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def create(self, run: Run) -> Run:
        """See the port."""
        try:
            with translate_database_errors(), self._engine.begin() as connection:
                connection.execute(insert(runs).values({**_row(run), "cancel_requested": False}))
        except IntegrityError as error:
            known = self.by_request(run.request_id)
            if known is None:
                raise AbortedError(f"{run.name} was created at the same time.") from error
            return known
        return run

    def get(self, name: str) -> Run | None:
        """See the port."""
        return next(iter(self._read(select(runs).where(runs.c.name == name))), None)

    def page(self, before: str, limit: int) -> Sequence[Run]:
        """See the port."""
        query = select(runs).order_by(runs.c.name.desc()).limit(limit)
        return self._read(query.where(runs.c.name < before) if before else query)

    def by_request(self, request_id: str) -> Run | None:
        """See the port."""
        return next(iter(self._read(select(runs).where(runs.c.request_id == request_id))), None)

    def succeeded(self, digest: str) -> Run | None:
        """See the port."""
        where = and_(runs.c.digest == digest, runs.c.state == RunState.SUCCEEDED.value)
        return next(iter(self._read(select(runs).where(where).order_by(runs.c.name.desc()).limit(1))), None)

    def under_way(self, digest: str) -> Run | None:
        """See the port."""
        where = and_(runs.c.digest == digest, runs.c.state.in_(_UNFINISHED), runs.c.cancel_requested.is_(False))
        return next(iter(self._read(select(runs).where(where).order_by(runs.c.name).limit(1))), None)

    def unfinished(self) -> Sequence[Run]:
        """See the port."""
        where = or_(runs.c.state.in_(_UNFINISHED), runs.c.announced.is_(False))
        # Running runs first, so that no second run starts.
        return self._read(select(runs).where(where).order_by(runs.c.state.desc(), runs.c.name))

    def update(self, run: Run) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(update(runs).where(runs.c.name == run.name).values(_row(run)))

    def request_cancel(self, name: str) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(update(runs).where(runs.c.name == name).values(cancel_requested=True))

    def mark_promoted(self, name: str, now: datetime) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(update(runs).where(runs.c.name == name).values(promote_time=now))

    def champion(self, model_name: str) -> Run | None:
        """See the port."""
        where = and_(runs.c.model_name == model_name, runs.c.promote_time.is_not(None))
        query = select(runs).where(where).order_by(runs.c.promote_time.desc(), runs.c.name.desc()).limit(1)
        return next(iter(self._read(query)), None)

    def mark_announced(self, name: str) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(update(runs).where(runs.c.name == name).values(announced=True))

    def _read(self, query: Any) -> list[Run]:
        with translate_database_errors(), self._reads.connect() as connection:
            return [_run(row) for row in connection.execute(query).mappings()]


def _row(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "model_name": run.spec.model_name,
        "state": run.state.value,
        "recipe": run.spec.to_json(),
        "digest": run.digest,
        "uri": run.uri,
        "progress": run.progress.to_json() if run.progress else None,
        "report": json.dumps(run.report.to_json()) if run.report else None,
        "failure": asdict(run.failure) if run.failure else None,
        "model_version": run.model_version,
        "request_id": run.request_id or None,
        "traceparent": run.traceparent,
        "attempts": run.attempts,
        "announced": run.announced,
        "warnings": run.warnings,
        "loss_curve": [[point.step, point.loss] for point in run.loss_curve],
        "create_time": run.create_time,
        "update_time": run.update_time,
    }


def _run(row: Mapping[Any, Any]) -> Run:
    return Run(
        name=row["name"],
        spec=TrainingSpec.from_json(row["recipe"], stored_method),
        digest=row["digest"],
        uri=row["uri"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        state=RunState(row["state"]),
        progress=Progress.from_json(row["progress"]) if row["progress"] else None,
        report=_report(row),
        failure=Failure(**row["failure"]) if row["failure"] else None,
        model_version=row["model_version"],
        request_id=row["request_id"] or "",
        traceparent=row["traceparent"],
        cancel_requested=row["cancel_requested"],
        attempts=row["attempts"],
        announced=row["announced"],
        warnings=tuple(row["warnings"]),
        loss_curve=tuple(LossPoint(step, loss) for step, loss in row["loss_curve"]),
    )


def _report(row: Mapping[Any, Any]) -> Report | None:
    """The report in a row; None if it is missing or damaged, since one damaged report must not hide other runs."""
    try:
        return Report.from_json(json.loads(row["report"])) if row["report"] else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("the report of %s in the database cannot be read: %r", row["name"], error)
        return None
