"""Pulling of imports where the bus is unavailable, the process ends, or someone cancels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.ingest.adapters.ledger import TemporaryLedger
from services.ingest.adapters.pulled_store import SqlPulledStore
from services.ingest.adapters.stores import SqlImportStore
from services.ingest.app.interrupt import Interrupt
from services.ingest.app.ports import Accepted
from services.ingest.app.runner import ImportRunner
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import Import, ImportState, SourceSpec
from services.ingest.engine.formats.json_lines import JsonLines
from services.kit.clock import SystemClock
from services.kit.errors import UnavailableError, bus_away
from tests.conftest import OpenDatabase
from tests.sources import file_sources

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Bus:
    """Keeps the records that it is given; `trouble` runs first and may raise."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.refused: list[Refusal] = []
        self.completed: list[Import] = []
        self.trouble: Callable[[], None] = lambda: None

    def accept(self, records: Sequence[Accepted], import_name: str = "", origin: str = "") -> None:
        self.trouble()
        self.texts += [item.record.text for item in records]

    def refuse(self, refusals: Sequence[Refusal], import_name: str) -> None:
        self.trouble()
        self.refused += refusals

    def withdraw(self, source: str, record_ids: Sequence[str], import_name: str, origin: str) -> None:
        raise AssertionError("a first import withdraws nothing")

    def complete(self, done: Import) -> None:
        self.trouble()
        self.completed.append(done)


@pytest.fixture
def store(open_service_database: OpenDatabase) -> SqlImportStore:
    return SqlImportStore(open_service_database("ingest"))


@pytest.fixture
def running(store: SqlImportStore, tmp_path: Path) -> Import:
    """An import of five lines, of which one repeats another and one gives no record."""
    texts = ["a", "b", "", "a", "c"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    made = Import("imports/x", SourceSpec("s", JsonLines(f"{tmp_path}/a.jsonl")), ImportState.RUNNING, NOW, NOW)
    store.create_import(made, "request")
    return made


def runner(store: SqlImportStore, bus: Bus) -> ImportRunner:
    pulled = SqlPulledStore(store._engine)
    return ImportRunner(store, pulled, file_sources("/tmp"), bus, TemporaryLedger, SystemClock())


def kept(store: SqlImportStore) -> Import:
    found = store.import_named("imports/x")
    assert found is not None
    return found


def away_once() -> Callable[[], None]:
    left = [UnavailableError("The bus is unavailable.")]

    def trouble() -> None:
        if left:
            raise left.pop()

    return trouble


def test_while_the_bus_is_unavailable_an_import_waits_and_says_so(store: SqlImportStore, running: Import) -> None:
    bus = Bus()
    left: list[Exception] = [bus_away("No broker answers"), bus_away("No broker answers")]
    seen: list[str] = []

    def trouble() -> None:
        now = kept(store).progress
        seen.append(now.waiting.reason if now is not None and now.waiting is not None else "")
        if left:
            raise left.pop()

    bus.trouble = trouble
    runner(store, bus).run(running, Interrupt())
    done = kept(store)
    # The second try finds what the first one left; the end says nothing of it.
    assert seen[:3] == ["", "BUS_AWAY", "BUS_AWAY"]
    assert done.progress is not None
    assert done.progress.waiting is None
    assert (done.state, done.record_count, done.rejected_count) == (ImportState.SUCCEEDED, 3, 1)
    assert bus.texts == ["a", "b", "c"]
    assert [refusal.reason for refusal in bus.refused] == ["EMPTY_TEXT"]
    assert len(done.source_digest) == 64


def test_the_event_of_a_success_is_sent_until_it_is_sent_and_then_no_more(
    store: SqlImportStore, running: Import
) -> None:
    bus = Bus()
    runner(store, bus).run(running, Interrupt())
    bus.trouble = away_once()
    with pytest.raises(UnavailableError):
        runner(store, bus).announce()
    for _ in range(2):
        runner(store, bus).announce()
    assert [item.name for item in bus.completed] == [running.name]


def test_where_the_process_ends_the_import_stays_running_and_the_next_one_pulls_it(
    store: SqlImportStore, running: Import
) -> None:
    bus = Bus()
    first = runner(store, bus)

    def stop() -> None:
        first.stop()
        raise UnavailableError("The bus is unavailable.")

    bus.trouble = stop
    first.run(running, Interrupt())
    (left,) = store.running_imports()
    bus.trouble = lambda: None
    runner(store, bus).run(left, Interrupt())
    assert (kept(store).state, bus.texts) == (ImportState.SUCCEEDED, ["a", "b", "c"])


def test_an_import_that_is_cancelled_stays_cancelled(store: SqlImportStore, running: Import) -> None:
    bus = Bus()

    def cancel() -> None:
        store.update_import(replace(kept(store), state=ImportState.CANCELLED))

    bus.trouble = cancel
    runner(store, bus).run(running, Interrupt())
    assert kept(store).state is ImportState.CANCELLED
    assert store.unannounced_imports() == []


def test_content_that_changes_while_it_is_read_is_never_reused(
    store: SqlImportStore, running: Import, tmp_path: Path
) -> None:
    bus = Bus()

    def change() -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "other"}\n')

    bus.trouble = change
    runner(store, bus).run(running, Interrupt())
    assert (kept(store).state, kept(store).source_digest) == (ImportState.SUCCEEDED, "")


def test_a_source_that_is_gone_fails_the_import_by_name(store: SqlImportStore, running: Import, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").unlink()
    runner(store, Bus()).run(running, Interrupt())
    failure = kept(store).failure
    assert failure is not None
    assert failure.reason == "NO_SUCH_SOURCE"
    assert "a.jsonl" in failure.message


def test_the_digest_of_an_import_does_not_depend_on_order_or_repeats_but_on_content() -> None:
    def digest(*records: RawRecord) -> tuple[str, int, list[bool]]:
        ledger = TemporaryLedger()
        fresh = [ledger.add(record) for record in records]
        found = ledger.digest(), ledger.count, fresh
        ledger.close()
        return found

    one, two = RawRecord("s", "1", {}, "r1"), RawRecord("s", "2", {}, "r2")
    assert digest(one, two, one) == (digest(two, one)[0], 2, [True, True, False])
    changed = replace(two, text="3")
    assert digest(one, two, changed) == (digest(one, changed)[0], 2, [True, True, True])
    assert digest(one, two)[0] != digest(one, changed)[0]
