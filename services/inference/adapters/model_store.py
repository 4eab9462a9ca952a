"""Models and versions in a database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, Select, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from services.inference.adapters.tables import done_requests, model_versions, models, route_changes
from services.inference.domain.model import Build, Integrity, IntegrityState, Lineage, Model, ModelVersion, VersionState
from services.inference.domain.route import Cause, ModelRoute, RouteEntry
from services.kit.errors import AbortedError
from services.kit.storage.database import read_only, translate_database_errors
from services.serving.domain.answer import Task
from services.serving.domain.cascade import Cascade
from services.serving.domain.route import Role

# Columns that a change of a version leaves alone: what never changes, and a count that only grows.
_FIXED = ("model", "number", "create_time", "generation")


class SqlModelStore:
    """Implements `services.inference.app.ports.ModelStore`."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def model(self, name: str) -> Model | None:
        """See the port."""
        with self._reading() as connection:
            row = connection.execute(_whole().where(models.c.name == name)).mappings().one_or_none()
        return None if row is None else _model(row)

    def models(self, after: str, limit: int) -> Sequence[Model]:
        """See the port."""
        query = _whole().where(models.c.name > after).order_by(models.c.name).limit(limit)
        with self._reading() as connection:
            return [_model(row) for row in connection.execute(query).mappings().all()]

    def version(self, model: str, number: int) -> ModelVersion | None:
        """See the port."""
        with self._reading() as connection:
            return _version_or_none(connection, model, number)

    def versions(self, model: str, before: int, limit: int) -> Sequence[ModelVersion]:
        """See the port."""
        table = model_versions
        query = select(table).where(table.c.model == model, table.c.number < before)
        with self._reading() as connection:
            found = connection.execute(query.order_by(table.c.number.desc()).limit(limit)).mappings().all()
        return [_version(row) for row in found]

    def create_version(self, draft: ModelVersion) -> ModelVersion:
        """See the port."""
        table = model_versions
        with self._transaction() as connection:
            known = connection.execute(select(models.c.name).where(models.c.name == draft.model)).first()
            if known is None:
                values = {"name": draft.model, "serving": None}
                times = {"create_time": draft.create_time, "update_time": draft.update_time}
                connection.execute(insert(models).values(**values, **times))
            newest = connection.execute(select(func.max(table.c.number)).where(table.c.model == draft.model)).scalar()
            version = replace(draft, number=(newest or 0) + 1)
            connection.execute(insert(table).values(**_row(version), announced=True))
            return version

    def update_version(self, version: ModelVersion) -> None:
        """See the port."""
        with self._transaction() as connection:
            _update(connection, version)

    def set_route(self, route: ModelRoute, now: datetime, *, traceparent: str = "", done_by: str = "") -> ModelRoute:
        """See the port."""
        table, model = model_versions, route.model
        route = replace(route, revision=route.revision + 1, update_time=now)
        serving = route.serving.number if route.serving is not None else None
        of_model = table.c.model == model
        with self._transaction() as connection:
            before = connection.execute(select(models.c.serving).where(models.c.name == model)).scalar_one()
            # The primary key makes this fail where another process was quicker.
            connection.execute(
                insert(route_changes).values(
                    model=model,
                    revision=route.revision,
                    content=_content(route),
                    change_time=now,
                    traceparent=traceparent,
                    announced=False,
                )
            )
            gone = of_model & (table.c.state == VersionState.SERVING.value) & table.c.number.not_in(route.numbers)
            connection.execute(update(table).where(gone).values(state=VersionState.RETIRED.value, update_time=now))
            come = of_model & (table.c.state != VersionState.SERVING.value) & table.c.number.in_(route.numbers)
            values = {"state": VersionState.SERVING.value, "message": "", "update_time": now}
            connection.execute(update(table).where(come).values(**values))
            if serving is not None and serving != before:
                took_over = of_model & (table.c.number == serving)
                connection.execute(update(table).where(took_over).values(serve_time=now, announced=False))
            if done_by and serving is not None:
                done = {"model": model, "request_id": done_by, "number": serving}
                connection.execute(insert(done_requests).values(**done))
            values = {"serving": serving, "revision": route.revision, "update_time": now}
            connection.execute(update(models).where(models.c.name == model).values(**values))
        return route

    def done_by(self, model: str, request_id: str) -> ModelVersion | None:
        """See the port."""
        table = done_requests
        query = select(table.c.number).where(table.c.model == model, table.c.request_id == request_id)
        with self._reading() as connection:
            number = connection.execute(query).scalar()
            return None if number is None else _version_or_none(connection, model, number)

    def count_load(self, version: ModelVersion) -> ModelVersion:
        """See the port."""
        table = model_versions
        same = (table.c.model == version.model) & (table.c.number == version.number)
        with self._transaction() as connection:
            connection.execute(update(table).where(same).values(generation=table.c.generation + 1))
            counted = connection.execute(select(table.c.generation).where(same)).scalar_one()
        return replace(version, generation=counted)

    def routed(self, route: ModelRoute) -> Sequence[ModelVersion]:
        """See the port."""
        table = model_versions
        query = select(table).where(table.c.model == route.model, table.c.number.in_(route.numbers))
        with self._reading() as connection:
            rows = connection.execute(query.order_by(table.c.number)).mappings().all()
        return [_version(row) for row in rows]

    def unannounced_routes(self) -> Sequence[tuple[ModelRoute, str]]:
        """See the port."""
        table = route_changes
        query = select(table).where(table.c.announced.is_(False)).order_by(table.c.change_time, table.c.revision)
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [(_route(row), str(row["traceparent"])) for row in rows]

    def mark_route_announced(self, route: ModelRoute) -> None:
        """See the port. What came before the newest change is not needed any more."""
        table = route_changes
        of_model = table.c.model == route.model
        with self._transaction() as connection:
            connection.execute(
                update(table).where(of_model & (table.c.revision == route.revision)).values(announced=True)
            )
            newest = select(models.c.revision).where(models.c.name == route.model).scalar_subquery()
            connection.execute(
                delete(table).where(of_model & table.c.announced.is_(True) & (table.c.revision < newest))
            )

    def unannounced(self) -> Sequence[ModelVersion]:
        """See the port."""
        table = model_versions
        query = select(table).where(table.c.announced.is_(False)).order_by(table.c.serve_time)
        with self._reading() as connection:
            return [_version(row) for row in connection.execute(query).mappings().all()]

    def mark_announced(self, version: ModelVersion) -> None:
        """See the port. The event of a version that serves again meanwhile stays pending."""
        table = model_versions
        same = (table.c.model == version.model) & (table.c.number == version.number)
        with self._transaction() as connection:
            connection.execute(
                update(table).where(same & (table.c.serve_time == version.serve_time)).values(announced=True)
            )

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with translate_database_errors(), self._reads.connect() as connection:
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with translate_database_errors(), self._engine.begin() as connection:
                yield connection
        except IntegrityError as error:
            raise AbortedError("Another process published at the same time. Retry.") from error


def _row(version: ModelVersion) -> dict[str, Any]:
    return {
        "model": version.model,
        "number": version.number,
        "state": version.state.value,
        "artifact_uri": version.lineage.artifact_uri,
        "digest": version.lineage.digest,
        "run": version.lineage.run,
        "dataset_version": version.lineage.dataset_version,
        "build": asdict(version.build),
        "message": version.message,
        "request_id": version.request_id,
        "traceparent": version.traceparent,
        "create_time": version.create_time,
        "update_time": version.update_time,
        "serve_time": version.serve_time,
        "integrity": version.integrity.state.value,
        "verify_time": version.integrity.verify_time,
        "integrity_message": version.integrity.message,
        "generation": version.generation,
    }


def _update(connection: Connection, version: ModelVersion, **further: Any) -> None:
    table = model_versions
    values = {name: value for name, value in _row(version).items() if name not in _FIXED}
    same = (table.c.model == version.model) & (table.c.number == version.number)
    connection.execute(update(table).where(same).values(**values, **further))


def _version_or_none(connection: Connection, model: str, number: int) -> ModelVersion | None:
    table = model_versions
    query = select(table).where(table.c.model == model, table.c.number == number)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _version(row)


def _version(row: RowMapping | Mapping[str, Any]) -> ModelVersion:
    build = row["build"]
    return ModelVersion(
        model=row["model"],
        number=row["number"],
        lineage=Lineage(row["artifact_uri"], row["digest"], row["run"], row["dataset_version"]),
        build=Build(**{**build, "task": Task(build["task"]), "labels": tuple(build["labels"])}),
        state=VersionState(row["state"]),
        create_time=row["create_time"],
        update_time=row["update_time"],
        serve_time=row["serve_time"],
        message=row["message"],
        request_id=row["request_id"],
        traceparent=row["traceparent"],
        integrity=Integrity(
            IntegrityState(row["integrity"]),
            row["verify_time"],
            row["integrity_message"],
        ),
        generation=row["generation"],
    )


def _content(route: ModelRoute) -> dict[str, Any]:
    return {
        "entries": [asdict(entry) for entry in route.entries],
        "aliases": dict(route.aliases),
        "cause": asdict(route.cause),
        "cascade": None if route.cascade is None else asdict(route.cascade),
    }


def _route(row: RowMapping | Mapping[str, Any]) -> ModelRoute:
    entries = (
        RouteEntry(
            entry["number"],
            Role(entry["role"]),
            entry["weight"],
            tuple((begin, end) for begin, end in entry["users"]),
        )
        for entry in row["content"]["entries"]
    )
    content = row["content"]
    return ModelRoute(
        row["model"],
        row["revision"],
        tuple(entries),
        content["aliases"],
        row["change_time"],
        Cause(**content.get("cause", {})),
        # Routes of earlier releases have no cascade.
        Cascade(**cascade) if (cascade := content.get("cascade")) else None,
    )


def _whole() -> Select[Any]:
    """Models, each with its serving version beside it under `version_…`, and its route under `route_…`."""
    same = (model_versions.c.model == models.c.name) & (model_versions.c.number == models.c.serving)
    newest = (route_changes.c.model == models.c.name) & (route_changes.c.revision == models.c.revision)
    version = (column.label(f"version_{column.name}") for column in model_versions.c)
    route = (column.label(f"route_{column.name}") for column in route_changes.c)
    return select(models, *version, *route).outerjoin(model_versions, same).outerjoin(route_changes, newest)


def _model(row: RowMapping) -> Model:
    version = {column.name: row[f"version_{column.name}"] for column in model_versions.c}
    serving = None if row["version_number"] is None else _version(version)
    change = {column.name: row[f"route_{column.name}"] for column in route_changes.c}
    route = ModelRoute(row["name"]) if row["route_revision"] is None else _route(change)
    return Model(row["name"], row["create_time"], row["update_time"], serving, route)
