"""Declared sources: put, paused, deleted, collected by hand and by their timetables, and kills in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, insert, select

from services.ingest.adapters.crawl.page_store import Crawl, SqlPageStore, Target
from services.ingest.adapters.ledger import TemporaryLedger
from services.ingest.adapters.pulled_store import SqlPulledStore
from services.ingest.adapters.source_store import SqlSourceStore
from services.ingest.adapters.stores import SqlImportStore
from services.ingest.adapters.tables import (
    crawled_pages,
    import_requests,
    imports,
    pulled_records,
    source_collections,
    source_positions,
)
from services.ingest.app.declared_sources import DeclaredSources
from services.ingest.app.imports import Imports
from services.ingest.app.interrupt import Interrupt
from services.ingest.app.policies import Policies
from services.ingest.app.runner import ImportRunner
from services.ingest.domain.declared_source import SourceView, Timetable
from services.ingest.domain.source_import import Differences, Import, ImportState, SourceSpec
from services.ingest.engine.formats.json_lines import JsonLines
from services.ingest.entrypoints.mapping import source_to
from services.kit.errors import (
    AbortedError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TidemillError,
    UnavailableError,
)
from tests.conftest import OpenDatabase
from tests.sources import file_sources
from tests.unit.ingest.test_synchronised_sources import Bus, CrashingProxy, KilledError, deaths_at

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
HOURLY = Timetable(every_minutes=60)


class SetClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.time = NOON

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


class Harness:
    """Declared sources on a real database; files of lines are what they pull."""

    def __init__(self, open_database: OpenDatabase, folder: Path) -> None:
        self.engine = open_database("ingest")
        self.folder, self.bus, self.clock = folder, Bus(), SetClock()
        self.store, self.kept = SqlImportStore(self.engine), SqlSourceStore(self.engine)
        self.reader = file_sources(folder)
        self.imports = Imports(self.store, self.reader, self.kept, self.clock)
        self.policies = Policies(self.kept)
        self.sources = DeclaredSources(self.kept, self.imports, self.store, self.policies, self.clock)

    def killed(self, step: int, *, after: bool) -> DeclaredSources:
        """Sources in a process that dies at one of its calls to the database."""
        deaths = deaths_at(step, after=after)
        store: Any = CrashingProxy(self.store, deaths)
        kept: Any = CrashingProxy(self.kept, deaths)
        return DeclaredSources(kept, Imports(store, self.reader, kept, self.clock), store, Policies(kept), self.clock)

    def write(self, *texts: str, source: str = "news") -> SourceSpec:
        file = self.folder / f"{source}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return SourceSpec(source, JsonLines(str(file)))

    def put(self, *texts: str, timetable: Timetable | None = HOURLY) -> SourceView:
        return self.sources.put(self.write(*texts), timetable)

    def step(self, sources: DeclaredSources | None = None) -> list[Import]:
        """One look at what is due, with the orders carried out."""
        sources = sources or self.sources
        return [sources.carry_out(order, "", Interrupt())[0] for order in sources.orders()]

    def pull(self) -> None:
        """Pulls everything that runs to its end."""
        pulled = SqlPulledStore(self.engine)
        runner = ImportRunner(self.store, pulled, self.reader, self.bus, TemporaryLedger, self.clock)
        for item in self.store.running_imports():
            runner.run(item, Interrupt())

    def collect(self) -> list[Import]:
        found = self.step()
        self.pull()
        return found

    def count(self, table: Any) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(select(func.count()).select_from(table)).scalar_one())

    def later(self, **span: float) -> None:
        self.clock.time += timedelta(**span)


@pytest.fixture
def harness(open_service_database: OpenDatabase, tmp_path: Path) -> Harness:
    return Harness(open_service_database, tmp_path)


def refusal(do: Callable[[], object]) -> TidemillError:
    with pytest.raises(TidemillError) as caught:
        do()
    return caught.value


def test_an_interval_collects_at_once_and_then_once_an_interval(harness: Harness) -> None:
    harness.put("one", "two")
    assert [item.spec.source for item in harness.collect()] == ["news"]
    assert harness.bus.held == ["one", "two"]
    harness.later(minutes=59)
    assert harness.collect() == []
    harness.write("two", "three")
    harness.later(minutes=1)
    (second,) = harness.collect()
    assert harness.bus.held == ["three", "two"]
    view = harness.sources.get("sources/news")
    assert view.last_import is not None
    assert (view.last_import.name, view.last_import.differences) == (second.name, Differences(added=1, gone=1))
    assert view.collections[0].import_name == second.name
    assert view.source.due_time == NOON + timedelta(minutes=120)


def test_what_is_unchanged_is_answered_by_the_earlier_import(harness: Harness) -> None:
    harness.put("one")
    (first,) = harness.collect()
    harness.later(hours=1)
    assert [item.name for item in harness.collect()] == [first.name]
    newest, oldest = harness.sources.get("sources/news").collections
    assert (newest.reused, oldest.reused) == (True, False)
    assert harness.count(imports) == 1


def test_times_of_a_schedule_that_were_missed_are_one_collection(harness: Harness) -> None:
    harness.put("one", timetable=Timetable(schedule="0 3 * * *", time_zone="Europe/Berlin"))
    assert harness.collect() == []
    harness.later(days=3)
    assert len(harness.collect()) == 1
    assert harness.collect() == []
    # 03:00 in Berlin is 02:00 UTC in winter.
    assert harness.sources.get("sources/news").source.due_time == datetime(2026, 3, 6, 2, tzinfo=UTC)


def test_a_source_is_not_ordered_again_while_it_is_collected(harness: Harness) -> None:
    harness.put("one")
    harness.step()
    harness.later(hours=5)
    assert harness.step() == []
    harness.pull()
    harness.write("two")
    assert len(harness.collect()) == 1
    assert harness.bus.held == ["two"]


def test_a_paused_source_collects_nothing_in_any_way(harness: Harness) -> None:
    spec = harness.put("one").source.spec
    harness.sources.pause("sources/news", True, "the site asked us to")
    harness.later(hours=5)
    assert harness.collect() == []
    for refused in (
        refusal(lambda: harness.sources.order("sources/news", "", "mesh")),
        # Neither does a cycle's import of the same place.
        refusal(lambda: harness.imports.create(spec, "", "", Interrupt())),
    ):
        assert isinstance(refused, FailedPreconditionError)
        assert (refused.reason, refused.metadata) == ("SOURCE_PAUSED", {"source": "sources/news"})
        assert "the site asked us to" in refused.message
    assert harness.count(imports) == 0
    harness.sources.pause("sources/news", False)
    assert len(harness.collect()) == 1
    assert harness.bus.held == ["one"]


def test_an_import_of_a_paused_source_is_what_was_collected_before(harness: Harness) -> None:
    spec = harness.put("one").source.spec
    (first,) = harness.collect()
    harness.sources.pause("sources/news", True)
    harness.write("two")
    item, reused = harness.imports.create(spec, "of a cycle", "", Interrupt())
    assert (item.name, reused) == (first.name, True)
    # Pulled in another way, or after a loss, it is another import, which a paused source has not.
    for wrong in (
        lambda: harness.imports.create(replace(spec, max_records=1), "", "", Interrupt()),
        lambda: harness.imports.create(spec, "", "", Interrupt(), resend=True),
    ):
        assert refusal(wrong).reason == "SOURCE_PAUSED"
    harness.store.note_loss(NOON + timedelta(seconds=1))
    assert refusal(lambda: harness.imports.create(spec, "", "", Interrupt())).reason == "SOURCE_PAUSED"
    assert harness.bus.held == ["one"]


def test_an_order_that_is_pending_waits_for_the_end_of_a_pause(harness: Harness) -> None:
    harness.put("one")
    assert len(harness.sources.orders()) == 1
    harness.sources.pause("sources/news", True)
    assert harness.step() == []
    harness.sources.pause("sources/news", False)
    assert len(harness.step()) == 1


def test_a_source_that_cannot_be_read_says_why_and_is_tried_at_its_next_time(harness: Harness) -> None:
    harness.put("one")
    file = harness.folder / "news.jsonl"
    file.unlink()
    (order,) = harness.sources.orders()
    refused = refusal(lambda: harness.sources.carry_out(order, "", Interrupt()))
    assert harness.step() == []
    (kept,) = harness.sources.get("sources/news").collections
    assert kept.failure is not None
    assert (kept.failure.reason, kept.import_name) == (refused.reason, "")
    assert str(file) in source_to(harness.sources.get("sources/news")).collections[0].failure.message
    harness.write("one")
    harness.later(hours=1)
    assert len(harness.collect()) == 1


def test_while_the_database_is_unavailable_an_order_stays_pending(harness: Harness) -> None:
    harness.put("one")
    (order,) = harness.sources.orders()

    class Away:
        def __getattr__(self, name: str) -> Any:
            raise UnavailableError("The database is unavailable.")

    away = DeclaredSources(
        harness.kept,
        Imports(Away(), harness.reader, harness.kept, harness.clock),
        harness.store,
        harness.policies,
        harness.clock,
    )
    assert isinstance(refusal(lambda: away.carry_out(order, "", Interrupt())), UnavailableError)
    assert len(harness.step()) == 1


def test_a_collection_by_hand_is_one_import_by_request(harness: Harness) -> None:
    harness.put("one", timetable=None)
    assert harness.collect() == []
    orders = [harness.sources.order("sources/news", "r1", "key:k1") for _ in range(2)]
    found = [harness.sources.carry_out(order, "", Interrupt())[0].name for order in orders]
    again = harness.sources.order("sources/news", "r1", "key:k1")
    found.append(harness.sources.carry_out(again, "", Interrupt())[0].name)
    assert len(set(found)) == 1
    (kept,) = harness.sources.get("sources/news").collections
    assert (kept.actor, kept.import_name) == ("key:k1", found[0])
    harness.sources.put(harness.write("x", source="other"), None)
    assert refusal(lambda: harness.sources.order("sources/other", "r1", "mesh")).reason == "REQUEST_ID_REUSED"


def test_a_failed_collection_by_hand_is_tried_again_by_the_same_request(harness: Harness) -> None:
    spec = harness.put("one", timetable=None).source.spec
    Path(spec.kind.uri).unlink()
    order = harness.sources.order("sources/news", "r1", "mesh")
    refusal(lambda: harness.sources.carry_out(order, "", Interrupt()))
    harness.write("one")
    again = harness.sources.order("sources/news", "r1", "mesh")
    harness.sources.carry_out(again, "", Interrupt())
    harness.pull()
    assert harness.bus.held == ["one"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(11))
def test_a_kill_at_any_call_neither_loses_nor_doubles_a_collection(harness: Harness, step: int, after: bool) -> None:
    harness.put("one", "two")
    killed = True
    try:
        harness.step(harness.killed(step, after=after))
        killed = False
    except KilledError:
        pass
    assert killed == (step < 10), "the calls of a collection have changed: adapt the range"
    # The next process finds the order, or what is due.
    harness.step()
    harness.pull()
    assert harness.count(imports) == 1
    assert harness.count(source_collections) == 1
    (kept,) = harness.sources.get("sources/news").collections
    assert kept.import_name
    assert harness.bus.held == ["one", "two"]
    harness.later(minutes=59)
    assert harness.step() == []


def test_put_again_changes_spec_and_times_and_keeps_the_pause(harness: Harness) -> None:
    first = harness.put("one").source
    harness.sources.pause("sources/news", True, "why")
    harness.later(minutes=10)
    assert harness.put("one").source == harness.sources.get("sources/news").source
    assert harness.sources.get("sources/news").source.due_time == first.due_time
    changed = harness.put("one", timetable=Timetable(every_minutes=5)).source
    assert (changed.paused, changed.pause_reason, changed.create_time) == (True, "why", NOON)
    assert (changed.due_time, changed.timetable) == (harness.clock.time, Timetable(every_minutes=5))
    by_hand = harness.put("one", timetable=None).source
    assert (by_hand.due_time, by_hand.timetable) == (None, None)


def test_what_is_not_valid_is_refused_by_its_field(harness: Harness) -> None:
    spec = harness.write("one")
    for wrong, field in (
        (lambda: harness.sources.put(spec, Timetable(schedule="61 * * * *")), "spec.collect.schedule"),
        (lambda: harness.sources.put(spec, Timetable(schedule="0 3 30 2 *")), "spec.collect.schedule"),
        (
            lambda: harness.sources.put(spec, Timetable(schedule="0 3 * * *", time_zone="Mars")),
            "spec.collect.time_zone",
        ),
        (lambda: harness.sources.put(replace(spec, source="answers.x"), None), "spec.source"),
        (lambda: harness.sources.declare("p", [(spec, Timetable(schedule="x"))]), "specs[0].collect.schedule"),
        (lambda: harness.sources.put(SourceSpec("news", JsonLines("relative")), None), "spec.json_lines.uri"),
        (
            lambda: harness.sources.declare("p", [(SourceSpec("news", JsonLines("a::b")), None)]),
            "specs[0].json_lines.uri",
        ),
    ):
        refused = refusal(wrong)
        assert isinstance(refused, InvalidArgumentError)
        assert [violation.field for violation in refused.violations] == [field]
    assert harness.sources.page("", 10) == []


def test_a_pipeline_declares_its_sources_together(harness: Harness) -> None:
    news, mails, logs = (harness.write("x", source=name) for name in ("news", "mails", "logs"))
    harness.sources.put(logs, HOURLY)
    first = harness.sources.declare("loop", [(news, HOURLY), (mails, HOURLY)])
    # The cycle that declares them collects them.
    assert [view.source.due_time for view in first] == [NOON + timedelta(hours=1)] * 2
    harness.sources.declare("loop", [(mails, HOURLY)])
    assert [view.source.name for view in harness.sources.page("", 10)] == ["sources/logs", "sources/mails"]
    # In the same way another pipeline may, in another way not.
    harness.sources.declare("second", [(mails, HOURLY)])
    refused = refusal(lambda: harness.sources.declare("second", [(news, HOURLY), (mails, Timetable(every_minutes=1))]))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "SOURCE_OF_ANOTHER_PIPELINE")
    assert refused.metadata == {"source": "sources/mails", "pipeline": "pipelines/loop"}
    # All or nothing.
    assert [view.source.name for view in harness.sources.page("", 10)] == ["sources/logs", "sources/mails"]
    # What was put by itself becomes the pipeline's.
    (taken,) = harness.sources.declare("third", [(logs, HOURLY)])
    assert (taken.source.pipelines, taken.source.due_time) == (("third",), NOON)
    harness.sources.declare("third", [])
    assert [view.source.name for view in harness.sources.page("", 10)] == ["sources/mails"]
    # It ends with the last pipeline that declares it.
    harness.sources.declare("loop", [])
    (left,) = harness.sources.page("", 10)
    assert (left.source.name, left.source.pipelines) == ("sources/mails", ("second",))
    harness.sources.declare("second", [(mails, Timetable(every_minutes=1))])
    harness.sources.declare("second", [])
    assert harness.sources.page("", 10) == []


def test_a_deleted_source_loses_how_far_it_was_read_and_keeps_its_records(harness: Harness) -> None:
    spec = harness.put("one", "two").source.spec
    harness.collect()
    other = SourceSpec("other", spec.kind)
    pages = SqlPageStore(harness.engine)
    for origin in (spec.origin, other.origin):
        pages.add(Crawl(origin, "imports/x"), [Target("http://site/")], 10)
        with harness.engine.begin() as connection:
            connection.execute(insert(source_positions).values(origin=origin, position={"line": 7}))
    harness.write("three")
    harness.later(hours=1)
    (running,) = harness.step()
    assert harness.sources.delete("sources/news").source.spec == spec
    assert isinstance(refusal(lambda: harness.sources.get("sources/news")), NotFoundError)
    assert harness.sources.page("", 10) == []
    assert harness.imports.get(running.name).state is ImportState.CANCELLED
    # While its thread has not ended its state stays, and no one declares it again.
    harness.sources.forget_deleted({spec.origin})
    assert harness.count(crawled_pages) == 2
    assert isinstance(refusal(lambda: harness.put("one")), AbortedError)
    assert harness.sources.orders() == []
    harness.sources.forget_deleted(())
    assert (harness.count(crawled_pages), harness.store.position(spec.origin)) == (1, {})
    assert harness.store.position(other.origin) == {"line": 7}
    assert (harness.count(source_collections), harness.count(import_requests)) == (0, 0)
    # What was brought is known, so that the next import of the place withdraws what is gone.
    assert harness.count(pulled_records) == 2
    assert harness.bus.held == ["one", "two"]
    harness.put("two")
    harness.collect()
    assert harness.bus.held == ["two"]


def test_a_deleted_source_waits_for_an_import_that_a_cycle_began(harness: Harness) -> None:
    spec = harness.put("one").source.spec
    harness.sources.delete("sources/news")
    harness.imports.create(spec, "", "", Interrupt())
    harness.sources.forget_deleted(())
    assert isinstance(refusal(lambda: harness.put("one")), AbortedError)
    harness.pull()
    harness.sources.forget_deleted(())
    harness.put("one")
    assert harness.bus.held == ["one"]


def test_only_the_newest_collections_are_kept(harness: Harness) -> None:
    harness.put("one", timetable=Timetable(every_minutes=1))
    harness.collect()
    for _ in range(104):
        harness.later(minutes=1)
        harness.step()
    assert (harness.count(source_collections), harness.count(import_requests)) == (100, 100)
    view = harness.sources.get("sources/news")
    assert [item.order_time for item in view.collections] == [
        harness.clock.time - timedelta(minutes=minute) for minute in range(10)
    ]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    minutes=st.floats(0.1, 525_600),
    passed=st.floats(0, 10_000_000).map(lambda seconds: timedelta(seconds=seconds)),
)
def test_the_next_time_of_an_interval_is_one_interval_after_any_moment(minutes: float, passed: timedelta) -> None:
    moment = NOON + passed
    following = Timetable(every_minutes=minutes).next_after(moment)
    assert following is not None
    assert following > moment
    assert following - moment == timedelta(minutes=minutes)
