"""Both databases behave alike with odd characters, at limits, and with concurrent callers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

import pytest
from sqlalchemy import select

from services.cleaning.adapters.dataset_store import SqlDatasetStore
from services.cleaning.adapters.record_store import SqlRecordStore
from services.cleaning.adapters.tables import raw_records
from services.cleaning.app.ports import Arrival
from services.cleaning.domain.dataset import (
    AwaitedImport,
    Dataset,
    DatasetSpec,
    DatasetVersion,
    HoldoutSpec,
    ImportCount,
    VersionState,
)
from services.cleaning.domain.record import Cleaned, RawRecord, Verdict
from services.inference.adapters.model_store import SqlModelStore
from services.inference.domain.model import Build, Lineage, ModelVersion
from services.inference.domain.model import VersionState as ServingState
from services.ingest.adapters.stores import SqlBatchStore
from services.kit.errors import AbortedError, InvalidArgumentError
from services.kit.ids import new_id
from services.kit.storage.database import open_database, read_only
from services.pipeline.adapters.feedback_store import SqlFeedbackStore
from services.pipeline.domain.feedback import Answer, Feedback
from services.serving.domain.answer import Task
from tests.conftest import OpenDatabase, migrations
from tests.postgresql import PostgreSQL

NOW = datetime(2026, 11, 24, tzinfo=UTC)
ODD = "NUL \0, lone \ufffe, 心肌梗塞 👩‍👩‍👧 \u202e\x1b[31m 'quoted' %s :name"

T = TypeVar("T")


def _at_once(call: Callable[[int], T], count: int = 8) -> list[T]:
    """The results of concurrent callers, who retry if asked to."""

    def persist(number: int) -> T:
        for _ in range(100):
            try:
                return call(number)
            except AbortedError:
                continue
        raise AssertionError("asked to retry without end")

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(persist, range(count)))


def _numbers(found: Sequence[ModelVersion | DatasetVersion]) -> list[int]:
    return sorted(version.number for version in found)


def test_odd_characters_survive_and_no_record_is_refused_for_them(
    open_service_database: OpenDatabase, database_kind: str
) -> None:
    store = SqlRecordStore(open_service_database("cleaning"))
    record = RawRecord("r", "news", ODD, {"note": ODD}, "imports/a")
    verdict = Verdict("r", "news", "datasets/d", "0" * 64, record.content_digest, Cleaned(ODD, {"note": ODD}))
    store.collect([Arrival(record)], [], [verdict])
    (found,) = store.records("r", "news", 2)
    kept = ODD.replace("\0", "\ufffd") if database_kind == "postgresql" else ODD
    assert (found.record.text, found.record.attributes["note"]) == (kept, ODD)
    assert (found.verdicts[0].cleaned.text, found.verdicts[0].cleaned.attributes["note"]) == (kept, ODD)
    # The digest covers the text as it arrived, so the same record again is not a change.
    store.mark_announced(store.announcements(10))
    store.collect([Arrival(record)], [], [verdict])
    assert store.announcements(10) == []


def test_what_no_column_holds_is_the_callers_mistake(postgresql: PostgreSQL) -> None:
    engine = open_database(postgresql.create("limits"), migrations("ingest"), schema="ingest")
    store = SqlBatchStore(engine)
    for request_id in ("x" * 10_000, "with \0"):
        with pytest.raises(InvalidArgumentError, match="cannot store"):
            store.remember_batch(request_id, "0" * 64, NOW)
    engine.dispose()


def test_records_of_many_members_at_once_are_all_kept(open_service_database: OpenDatabase) -> None:
    store = SqlRecordStore(open_service_database("cleaning"))

    def collect(member: int) -> None:
        # The batches of neighbours overlap by half, as after a rebalance in the middle of a batch.
        arrivals = [
            Arrival(RawRecord(f"r{n}", "news", f"text {n}", {}, "imports/a"))
            for n in range(member * 50, member * 50 + 100)
        ]
        store.collect(list(reversed(arrivals)) if member % 2 else arrivals, [], [])

    _at_once(collect)
    assert store.import_counts(["imports/a"]) == {"imports/a": ImportCount(450)}


def test_a_long_read_holds_up_no_writer(open_service_database: OpenDatabase) -> None:
    engine = open_service_database("cleaning")
    store = SqlRecordStore(engine)

    def collect(number: int) -> None:
        store.collect([Arrival(RawRecord(f"r{number}", "news", f"text {number}", {}, "imports/a"))], [], [])

    collect(1)
    with read_only(engine).connect() as connection:
        first = connection.execute(select(raw_records.c.record_id)).scalars().all()
        # Without the fix, on SQLite, this would wait for 30 s and then fail.
        collect(2)
        assert first == ["r1"]
    digests = store.content_digests("datasets/d", DatasetSpec(("news",)), "")
    assert {record_id for record_id, _ in digests} == {"r1", "r2"}


def test_versions_of_a_data_set_asked_for_at_once_get_a_number_each(open_service_database: OpenDatabase) -> None:
    store = SqlDatasetStore(open_service_database("cleaning"))
    spec = DatasetSpec(("news",), (), HoldoutSpec(0.1))
    _at_once(lambda _: store.put_dataset(Dataset("datasets/d", spec, "0" * 64, NOW, NOW)))
    draft = DatasetVersion("datasets/d", 0, spec, "0" * 64, VersionState.BUILDING, NOW, NOW)
    made = _at_once(lambda number: store.create_version(draft, f"request-{number}")[0])
    assert _numbers(made) == list(range(1, 9))
    repeats = _at_once(lambda _: store.create_version(draft, "request-3")[0])
    assert {version.number for version in repeats} == {made[3].number}
    assert _numbers(store.versions("datasets/d", (1 << 31) - 1, 100)) == list(range(1, 9))
    nameless = replace(draft, awaited=(AwaitedImport("imports/a", 3),))
    assert {version.number for version, _ in _at_once(lambda _: store.create_version(nameless, ""))} == {9}


def test_versions_of_a_model_made_at_once_get_a_number_each(open_service_database: OpenDatabase) -> None:
    store = SqlModelStore(open_service_database("inference"))
    lineage = Lineage("file:///b", "0" * 64, "runs/r", "datasets/d/versions/1")
    build = Build(Task.TEXT_CLASSIFICATION, "int8", labels=("a", "b"))
    draft = ModelVersion("m", 0, lineage, build, ServingState.LOADING, NOW, NOW)
    made = _at_once(lambda _: store.create_version(draft))
    assert _numbers(made) == list(range(1, 9))

    def serve(number: int) -> None:
        while True:
            model = store.model("m")
            assert model is not None
            with suppress(AbortedError):  # another was quicker
                store.set_route(model.route.served_by(made[number].number), NOW)
                return

    _at_once(serve)
    model = store.model("m")
    assert model is not None
    assert model.serving is not None
    assert model.route.revision == 8
    states = [version.state for version in store.versions("m", (1 << 31) - 1, 100)]
    assert states.count(ServingState.SERVING) == 1


def test_feedback_that_comes_beside_its_prediction_finds_its_version(open_service_database: OpenDatabase) -> None:
    store = SqlFeedbackStore(open_service_database("pipeline"))
    names = [f"answers/{number}" for number in range(40)]

    def take(member: int) -> None:
        if member % 2:
            for name in names:
                store.record([Feedback(new_id(), name, 1.0, ODD, "", NOW, request_id=f"{name}-{member}")])
        else:
            for name in names:
                store.remember([Answer(name, "models/m/versions/1", NOW)])

    _at_once(take, 4)
    assert [item.model_version for item in store.page("", "", 1000)] == ["models/m/versions/1"] * 80
