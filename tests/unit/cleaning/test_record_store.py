"""What the record store asks of its database again and again must not read all of it each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from services.cleaning.__main__ import MIGRATIONS
from services.cleaning.adapters.record_store import SqlRecordStore
from services.cleaning.app.ports import Arrival
from services.cleaning.domain.dataset import Dataset, DatasetSpec
from services.cleaning.domain.record import RawRecord, Withdrawal
from services.kit.storage.database import open_database


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = open_database(f"sqlite:///{tmp_path}/cleaning.sqlite", MIGRATIONS)
    yield made
    made.dispose()


def plan_of(engine: Engine, ask: Callable[[SqlRecordStore], object]) -> list[str]:
    """How SQLite answers what is asked of a store."""
    asked: list[tuple[str, Any]] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    ask(SqlRecordStore(engine))
    statement, parameters = asked[-1]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM verdicts")).scalar() == 0
        return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]


def test_looking_for_announcements_reads_the_unannounced_only(engine: Engine) -> None:
    plan = plan_of(engine, lambda store: store.announcements(500))
    assert any("ix_verdicts_unannounced" in step for step in plan), plan


def test_announcements_of_a_batch_are_found_by_its_records_or_among_the_unannounced(engine: Engine) -> None:
    keys = [("one", f"r{number}") for number in range(500)]
    plan = plan_of(engine, lambda store: store.announcements(500, keys))
    indexed = ("ix_verdicts_unannounced", "ix_verdicts_record")
    assert any("verdicts" in step and any(index in step for index in indexed) for step in plan), plan
    assert not any(step.startswith("SCAN verdicts") and "INDEX" not in step for step in plan), plan


def test_looking_for_the_next_stale_records_begins_behind_the_last(engine: Engine) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    dataset = Dataset("datasets/x", DatasetSpec(("one", "two")), "0" * 64, now, now)
    plan = plan_of(engine, lambda store: store.stale(dataset, ("one", "rec_7"), 500))
    assert any("raw_records" in step and "(source,record_id)>(?,?)" in step for step in plan), plan
    assert not any("ORDER BY" in step for step in plan), plan


def test_records_are_counted_by_their_arrival_and_without_reading_them(engine: Engine) -> None:
    plan = plan_of(engine, lambda store: store.count(["one", "two"], 7))
    assert any("ix_raw_records_arrival" in step for step in plan), plan
    store = SqlRecordStore(engine)
    assert store.count(["one"], 0) == (0, 0)

    def record(number: int, arrival: int, source: str = "one", **other: Any) -> Arrival:
        return Arrival(RawRecord(f"r{number}", source, f"text {arrival}", {}, arrival=arrival, **other))

    store.collect([record(1, 5), record(2, 6, origin="o", import_name="imports/i"), record(3, 9, "two")], [], [])
    assert store.count(["one"], 0) == (2, 6)
    assert store.count(["one", "two"], 5) == (2, 9)
    # One that changed is new, one that was withdrawn is gone.
    store.collect([record(1, 7)], [Withdrawal("r2", "one", "imports/j", "o", 8)], [])
    assert store.count(["one"], 6) == (1, 7)
    assert store.count(["one"], 0) == (1, 7)
