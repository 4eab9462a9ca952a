"""Looks for drift in the service's database, and what they compare."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Engine, and_, case, delete, func, insert, select

from services.kit.errors import NotFoundError, snapshot_damaged
from services.kit.storage.artifacts import ArtifactStore, filesystem_of, translate_store_errors
from services.kit.storage.database import one_at_a_time, read_only, translate_database_errors
from services.pipeline.adapters.tables import captured_answers, drift_looks, feedback
from services.pipeline.domain.drift import DriftLook, Signal

_GIVEN, _SAID = captured_answers.c, feedback.c
# Without an author each judgement is a person of its own.
_PERSON = (_SAID.tenant, _SAID.author, case((_SAID.author == "", _SAID.feedback_id), else_=""))
# Of a window that has more, every second, third, … member is read.
_MAX_READ = 20_000


class SqlDriftStore:
    """Implements `services.pipeline.app.drift_ports.DriftStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def looks(self, pipeline: str) -> Mapping[Signal, DriftLook]:
        """See the port."""
        found = {}
        for row in self._rows(select(drift_looks).where(drift_looks.c.pipeline == pipeline)):
            values = {field.name: row[field.name] for field in fields(DriftLook)}
            look = DriftLook(**{**values, "signal": Signal(row["signal"])})
            found[look.signal] = look
        return found

    def keep(self, look: DriftLook) -> None:
        """See the port."""
        row = {**asdict(look), "signal": look.signal.value}
        same = and_(drift_looks.c.pipeline == look.pipeline, drift_looks.c.signal == look.signal.value)
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, "drift looks")
            connection.execute(delete(drift_looks).where(same))
            connection.execute(insert(drift_looks).values(row))

    def serving(self, model: str) -> str:
        """See the port."""
        where = (_GIVEN.model == model, _GIVEN.role == "serving")
        query = select(_GIVEN.model_version).where(*where).order_by(_GIVEN.answer_time.desc()).limit(1)
        return next((str(row["model_version"]) for row in self._rows(query)), "")

    def count_asked(self, model: str, after: datetime) -> int:
        """See the port."""
        return self._count(_asked(model, after))

    def asked(self, model: str, after: datetime, most: int, seed: int) -> Sequence[str]:
        """See the port."""
        query = select(_GIVEN.name).where(_asked(model, after)).order_by(_GIVEN.name)
        names = [row["name"] for row in self._rows(query)]
        drawn = random.Random(seed).sample(names, min(most, len(names)))  # noqa: S311 - no secret
        rows = self._rows(select(_GIVEN.prompt).where(_GIVEN.name.in_(drawn)).order_by(_GIVEN.name))
        return [row["prompt"] for row in rows]

    def reference_end(self, version: str, signal: Signal, least: int, span: timedelta) -> datetime | None:
        """See the port."""
        of = self._times_of_people if signal is Signal.RATINGS else self._times_of_answers
        times = of(version, least)
        return max(times[least - 1], times[0] + span) if len(times) >= least else None

    def count_given(self, version: str, after: datetime) -> int:
        """See the port."""
        return self._count(_given(version, after, None))

    def given(
        self, version: str, after: datetime | None, until: datetime | None, most: int
    ) -> Sequence[tuple[str, int]]:
        """See the port."""
        where = _given(version, after, until)
        query = select(_GIVEN.label, func.length(_GIVEN.text).label("length")).where(where)
        rows = self._rows(query.order_by(_GIVEN.answer_time, _GIVEN.name).limit(_MAX_READ))
        return [(row["label"], row["length"]) for row in rows[:: max(1, -(-len(rows) // most))]]

    def ratings(self, version: str, after: datetime | None, until: datetime | None) -> Sequence[float]:
        """See the port."""
        query = select(func.avg(_SAID.rating).label("mean")).where(_rated(version, after, until)).group_by(*_PERSON)
        return [float(row["mean"]) for row in self._rows(query)]

    def count_rated(self, version: str, after: datetime) -> int:
        """See the port."""
        people = select(*_PERSON).where(_rated(version, after, None)).distinct().subquery()
        return int(self._rows(select(func.count().label("count")).select_from(people))[0]["count"])

    def _times_of_answers(self, version: str, least: int) -> Sequence[datetime]:
        query = select(_GIVEN.answer_time).where(_given(version, None, None)).order_by(_GIVEN.answer_time)
        return [row["answer_time"] for row in self._rows(query.limit(least))]

    def _times_of_people(self, version: str, least: int) -> Sequence[datetime]:
        """When the first people rated for the first time."""
        first = func.min(_SAID.create_time).label("first")
        query = select(first).where(_rated(version, None, None)).group_by(*_PERSON)
        return [row["first"] for row in self._rows(query.order_by(first).limit(least))]

    def _count(self, where: ColumnElement[bool]) -> int:
        query = select(func.count().label("count")).select_from(captured_answers).where(where)
        return int(self._rows(query)[0]["count"])

    def _rows(self, query: Any) -> Sequence[Mapping[Any, Any]]:
        with translate_database_errors(), self._reads.connect() as connection:
            return list(connection.execute(query).mappings())


class SnapshotTexts:
    """Implements `services.pipeline.app.drift_ports.TrainingTexts` with the snapshots of cleaning."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts

    def sample(self, uri: str, most: int, seed: int) -> Sequence[str]:
        """See the port. The file is read in groups of rows: memory does not grow with it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._artifacts.check_contains(uri)
        filesystem, path = filesystem_of(f"{uri}/train.parquet")
        drawn = random.Random(seed)  # noqa: S311 - no secret
        kept: list[str] = []
        seen = 0
        try:
            with translate_store_errors(uri), filesystem.open(path, "rb") as stream:
                for batch in pq.ParquetFile(stream).iter_batches(columns=["text"]):
                    for text in batch.column("text").to_pylist():
                        seen += 1
                        if len(kept) < most:
                            kept.append(text or "")
                        elif (place := drawn.randrange(seen)) < most:
                            kept[place] = text or ""
        except FileNotFoundError as error:
            raise NotFoundError(
                f"The snapshot {uri} is gone; the next data set gives another one.",
                reason="SNAPSHOT_NOT_FOUND",
                metadata={"uri": uri},
            ) from error
        except (pa.ArrowException, KeyError) as error:
            raise snapshot_damaged(uri, "train.parquet", f"it cannot be read: {error}") from error
        return kept


def _asked(model: str, after: datetime) -> ColumnElement[bool]:
    ours = and_(_GIVEN.model == model, _GIVEN.answer_time > after)
    return and_(ours, _GIVEN.role != "shadow", _GIVEN.conversation.is_(False))


def _given(version: str, after: datetime | None, until: datetime | None) -> ColumnElement[bool]:
    where = and_(_GIVEN.model_version == version, _GIVEN.role == "serving")
    if after is not None:
        where = and_(where, _GIVEN.answer_time > after)
    return where if until is None else and_(where, _GIVEN.answer_time <= until)


def _rated(version: str, after: datetime | None, until: datetime | None) -> ColumnElement[bool]:
    where = and_(_SAID.model_version == version, _SAID.rating != 0)
    if after is not None:
        where = and_(where, _SAID.create_time > after)
    return where if until is None else and_(where, _SAID.create_time <= until)
