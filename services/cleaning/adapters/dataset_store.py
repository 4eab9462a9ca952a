"""Data sets and versions in the service's database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from services.cleaning.adapters.rows import dataset_of, dataset_row, version_of, version_row
from services.cleaning.adapters.tables import dataset_versions, datasets, version_requests
from services.cleaning.domain.dataset import Dataset, DatasetVersion, VersionState
from services.kit.errors import AbortedError
from services.kit.storage.database import one_at_a_time, read_only, translate_database_errors


class SqlDatasetStore:
    """Implements `DatasetStore` and `VersionStore` of `services.cleaning.app.ports`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def put_dataset(self, dataset: Dataset) -> Dataset:
        """See the port."""
        row = dataset_row(dataset)
        changed = {name: value for name, value in row.items() if name not in ("name", "create_time")}
        try:
            with translate_database_errors(), self._engine.begin() as connection:
                statement = update(datasets).where(datasets.c.name == dataset.name).values(changed)
                if connection.execute(statement).rowcount == 0:
                    connection.execute(insert(datasets).values(row))
        except IntegrityError as error:
            raise AbortedError(f"{dataset.name} was created by another caller at the same time.") from error
        kept = self.dataset(dataset.name)
        assert kept is not None
        return kept

    def dataset(self, name: str) -> Dataset | None:
        """See the port."""
        with translate_database_errors(), self._reads.connect() as connection:
            row = connection.execute(select(datasets).where(datasets.c.name == name)).mappings().first()
        return dataset_of(row) if row is not None else None

    def datasets(self, after: str, limit: int) -> Sequence[Dataset]:
        """See the port."""
        query = select(datasets).where(datasets.c.name > after).order_by(datasets.c.name).limit(limit)
        with translate_database_errors(), self._reads.connect() as connection:
            return [dataset_of(row) for row in connection.execute(query).mappings()]

    def create_version(self, draft: DatasetVersion, request_id: str, content: str = "") -> tuple[DatasetVersion, bool]:
        """See the port."""
        table = dataset_versions
        newest = select(func.max(table.c.number)).where(table.c.dataset == draft.dataset)
        try:
            with translate_database_errors(), self._engine.begin() as connection:
                # Otherwise two callers could both find no version, and both create one.
                one_at_a_time(connection, f"versions of {draft.dataset}")
                if request_id and (known := _repeated(connection, draft.dataset, request_id)):
                    return known
                if same := _same(connection, draft, content, coalesce=not request_id):
                    if request_id:
                        answer = {"dataset": draft.dataset, "request_id": request_id, "number": same.number}
                        connection.execute(insert(version_requests).values(answer))
                    return same, True
                number = (connection.execute(newest).scalar() or 0) + 1
                row = {**version_row(draft), "number": number, "request_id": request_id, "announced": False}
                connection.execute(insert(table).values(row))
        except IntegrityError as error:
            raise AbortedError(f"Another version of {draft.dataset} was requested at the same time.") from error
        return replace(draft, number=number), False

    def version(self, dataset: str, number: int) -> DatasetVersion | None:
        """See the port."""
        table = dataset_versions
        query = select(table).where(table.c.dataset == dataset, table.c.number == number)
        with translate_database_errors(), self._reads.connect() as connection:
            row = connection.execute(query).mappings().first()
        return version_of(row) if row is not None else None

    def versions(self, dataset: str, before: int, limit: int) -> Sequence[DatasetVersion]:
        """See the port."""
        table = dataset_versions
        query = (
            select(table)
            .where(table.c.dataset == dataset, table.c.number < before)
            .order_by(table.c.number.desc())
            .limit(limit)
        )
        return self._versions(query)

    def building(self) -> Sequence[DatasetVersion]:
        """See the port."""
        table = dataset_versions
        query = select(table).where(table.c.state == VersionState.BUILDING.value)
        return self._versions(query.order_by(table.c.create_time, table.c.dataset, table.c.number))

    def update_version(self, version: DatasetVersion) -> bool:
        """See the port."""
        table = dataset_versions
        statement = (
            update(table)
            .where(
                table.c.dataset == version.dataset,
                table.c.number == version.number,
                table.c.state == VersionState.BUILDING.value,
            )
            .values(version_row(version))
        )
        with translate_database_errors(), self._engine.begin() as connection:
            return connection.execute(statement).rowcount == 1

    def mark_erased(self, version: DatasetVersion, erased: int) -> None:
        """See the port."""
        assert version.snapshot is not None
        marked = replace(version, snapshot=replace(version.snapshot, erased=erased))
        where = (dataset_versions.c.dataset == version.dataset, dataset_versions.c.number == version.number)
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(update(dataset_versions).where(*where).values(body=version_row(marked)["body"]))

    def unannounced_versions(self) -> Sequence[DatasetVersion]:
        """See the port."""
        table = dataset_versions
        return self._versions(
            select(table)
            .where(table.c.state == VersionState.READY.value, table.c.announced.is_(False))
            .order_by(table.c.update_time)
        )

    def mark_version_announced(self, version: DatasetVersion) -> None:
        """See the port."""
        table = dataset_versions
        statement = update(table).where(table.c.dataset == version.dataset, table.c.number == version.number)
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(statement.values(announced=True))

    def _versions(self, query: Any) -> Sequence[DatasetVersion]:
        with translate_database_errors(), self._reads.connect() as connection:
            return [version_of(row) for row in connection.execute(query).mappings()]


def _repeated(connection: Connection, dataset: str, request_id: str) -> tuple[DatasetVersion, bool] | None:
    """The version that this request got before, and whether an earlier request had created it."""
    table = dataset_versions
    answered = select(version_requests.c.number).where(
        version_requests.c.dataset == dataset, version_requests.c.request_id == request_id
    )
    query = select(table).where(
        table.c.dataset == dataset,
        or_(table.c.request_id == request_id, table.c.number == answered.scalar_subquery()),
    )
    row = connection.execute(query).mappings().first()
    return (version_of(row), row["request_id"] != request_id) if row is not None else None


def _same(connection: Connection, draft: DatasetVersion, content: str, *, coalesce: bool) -> DatasetVersion | None:
    """The newest version that can be returned instead of a draft, see `VersionStore.create_version`."""
    table = dataset_versions
    states = ([VersionState.READY] if content else []) + ([VersionState.BUILDING] if coalesce else [])
    query = (
        select(table)
        .where(
            table.c.dataset == draft.dataset,
            table.c.state.in_([state.value for state in states]),
            table.c.spec == asdict(draft.spec),
            table.c.recipe_digest == draft.recipe_digest,
        )
        .order_by(table.c.number.desc())
    )
    for row in connection.execute(query).mappings():
        version = version_of(row)
        if version.state is VersionState.BUILDING and set(version.awaited) == set(draft.awaited):
            return version
        if version.snapshot is not None and version.snapshot.digest == content:
            return version
    return None
