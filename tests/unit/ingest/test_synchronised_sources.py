"""A pulled source is synchronised: what is gone from it is withdrawn, whenever a process dies, and nothing else."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.adapters.ledger import TemporaryLedger
from services.ingest.adapters.pulled_store import SqlPulledStore
from services.ingest.adapters.source_store import SqlSourceStore
from services.ingest.adapters.stores import SqlBatchStore, SqlImportStore
from services.ingest.app.declared_sources import DeclaredSources
from services.ingest.app.imports import Imports
from services.ingest.app.intake import Intake
from services.ingest.app.interrupt import Interrupt
from services.ingest.app.policies import Policies
from services.ingest.app.ports import Accepted, Pull
from services.ingest.app.runner import ImportRunner
from services.ingest.app.source_tenants import SourceTenants
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import Differences, Import, ImportState, SourceSpec
from services.ingest.engine.formats.json_lines import JsonLines
from services.ingest.entrypoints.worker import ImportWorker
from services.kit.clock import SystemClock
from services.kit.errors import InvalidArgumentError
from services.kit.ids import new_id
from tests.conftest import OpenDatabase
from tests.examples import examples
from tests.sources import file_sources
from tests.waiting import eventually


class KilledError(BaseException):
    """The process died: nothing catches this."""


class Bus:
    """What a consumer of the raw records holds in the end: of each record its text, and which origins hold it."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.origins: dict[str, set[str]] = {}
        self.withdrawn: list[str] = []

    def accept(self, records: Sequence[Accepted], import_name: str = "", origin: str = "") -> None:
        for item in records:
            self.texts[item.record.record_id] = item.record.text
            self.origins.setdefault(item.record.record_id, set()).add(origin)

    def withdraw(self, source: str, record_ids: Sequence[str], import_name: str, origin: str) -> None:
        self.withdrawn += record_ids
        for record_id in record_ids:
            # It may have been noted only, when the process died before it was published.
            self.origins.setdefault(record_id, set()).discard(origin)

    def refuse(self, refusals: Sequence[Refusal], import_name: str) -> None:
        pass

    def complete(self, done: Import) -> None:
        pass

    @property
    def held(self) -> list[str]:
        """Texts of the records that are there."""
        return sorted(self.texts[record_id] for record_id, origins in self.origins.items() if origins)


class CrashingProxy:
    """A part whose process dies at a call: before it is done, or after."""

    def __init__(self, part: object, deaths: Iterator[tuple[bool, bool]]) -> None:
        self._part, self._deaths = part, deaths

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._part, name)

        def call(*arguments: Any) -> Any:
            before, after = next(self._deaths)
            if before:
                raise KilledError
            answer = method(*arguments)
            if after:
                raise KilledError
            return answer

        return call


class Harness:
    """Ingest on a real database; a file of lines is what it pulls."""

    def __init__(self, open_database: OpenDatabase, folder: Path) -> None:
        engine = open_database("ingest")
        self.folder, self.bus = folder, Bus()
        self.store, self.pulled = SqlImportStore(engine), SqlPulledStore(engine)
        self.batches = SqlBatchStore(engine)
        self.sources = file_sources(folder)
        declared = self.source_store = SqlSourceStore(engine)
        self.policies = Policies(declared)
        self.tenants = SourceTenants(declared, self.policies)
        self.imports = Imports(self.store, self.sources, declared, SystemClock())
        self.declared = DeclaredSources(declared, self.imports, self.store, self.policies, SystemClock())

    def write(self, *lines: tuple[str, str] | str, file: str = "a") -> None:
        """Lines of (id, text), or lines as they are."""
        texts = [line if isinstance(line, str) else json.dumps({"id": line[0], "text": line[1]}) for line in lines]
        (self.folder / f"{file}.jsonl").write_text("".join(text + "\n" for text in texts))

    def spec(self, file: str = "a", max_records: int = 0, id_field: str = "id") -> SourceSpec:
        return SourceSpec("s", JsonLines(f"{self.folder}/{file}.jsonl", id_field=id_field), max_records)

    def runner(self, deaths: Iterator[tuple[bool, bool]] | None = None) -> ImportRunner:
        parts: list[Any] = [self.store, self.pulled, self.bus]
        if deaths is not None:
            parts = [CrashingProxy(part, deaths) for part in parts]
        store, pulled, bus = parts
        return ImportRunner(store, pulled, self.sources, bus, TemporaryLedger, SystemClock())

    def intake(self) -> Intake:
        return Intake(self.bus, self.batches, self.policies, self.tenants, SystemClock(), 60)

    def create(self, spec: SourceSpec, *, resend: bool = False) -> tuple[Import, bool]:
        return self.imports.create(spec, "", "", Interrupt(), resend=resend)

    def pull(self, spec: SourceSpec | None = None, *, resend: bool = False) -> Import:
        """An import, pulled to its end unless it is an earlier one."""
        item, reused = self.create(spec or self.spec(), resend=resend)
        if not reused:
            self.runner().run(item, Interrupt())
        return self.kept(item)

    def kept(self, item: Import) -> Import:
        found = self.store.import_named(item.name)
        assert found is not None
        return found


@pytest.fixture
def harness(open_service_database: OpenDatabase, tmp_path: Path) -> Harness:
    return Harness(open_service_database, tmp_path)


def test_an_edited_line_replaces_and_a_deleted_one_is_withdrawn(harness: Harness) -> None:
    harness.write(*((str(n), f"text {n}") for n in range(5)))
    assert harness.pull().differences == Differences(added=5)
    harness.write(("0", "text 0"), ("1", "edited"), ("2", "text 2"), ("4", "text 4"))
    done = harness.pull()
    assert (done.record_count, done.differences) == (4, Differences(changed=1, gone=1))
    assert harness.bus.held == ["edited", "text 0", "text 2", "text 4"]


def test_lines_without_an_id_are_synchronised_by_their_content(harness: Harness) -> None:
    spec = harness.spec(id_field="")
    harness.write(*(("", f"text {n}") for n in range(5)))
    harness.pull(spec)
    harness.write(("", "text 0"), ("", "edited"), ("", "text 2"), ("", "text 4"))
    done = harness.pull(spec)
    assert (done.record_count, done.differences) == (4, Differences(added=1, gone=2))
    assert harness.bus.held == ["edited", "text 0", "text 2", "text 4"]


def test_two_files_of_one_source_name_take_nothing_from_each_other(harness: Harness) -> None:
    harness.write(("1", "one"), ("2", "two"))
    harness.write(("2", "two"), ("3", "three"), file="b")
    harness.pull()
    harness.pull(harness.spec("b"))
    harness.write(("1", "one"))
    assert harness.pull().differences.gone == 1
    # The other file still has it.
    assert harness.bus.held == ["one", "three", "two"]
    harness.write(("3", "three"), file="b")
    harness.pull(harness.spec("b"))
    assert harness.bus.held == ["one", "three"]


def test_an_import_that_did_not_see_all_of_it_withdraws_nothing(harness: Harness) -> None:
    harness.write(*((str(n), f"text {n}") for n in range(4)))
    harness.pull()
    harness.write(("0", "text 0"), ("5", "text 5"), "no JSON")
    refused = harness.pull()
    harness.write(("0", "text 0"), ("6", "text 6"), ("7", "text 7"))
    capped = harness.pull(harness.spec(max_records=2))
    assert [done.not_synchronized for done in (refused, capped)] == ["refused", "max_records"]
    assert [done.differences.gone for done in (refused, capped)] == [0, 0]
    harness.write("no JSON")
    assert harness.pull().state is ImportState.FAILED
    cancelled, _ = harness.create(harness.spec())
    harness.store.update_import(replace(cancelled, state=ImportState.CANCELLED))
    harness.runner().run(cancelled, Interrupt())
    assert harness.bus.withdrawn == []
    # What all of them had brought is known: the next whole one takes it back.
    harness.write(("0", "text 0"))
    assert harness.pull().differences.gone == 5
    assert harness.bus.held == ["text 0"]


def test_a_file_that_is_rewritten_while_it_is_read_withdraws_nothing(harness: Harness) -> None:
    harness.write(*((str(n), f"text {n}") for n in range(4)))
    harness.pull()
    harness.write(("0", "text 0"), ("8", "new"))
    accept = harness.bus.accept

    def rewrite(*arguments: Any) -> None:
        accept(*arguments)
        harness.write(("0", "text 0"), ("1", "text 1"), ("2", "text 2"), ("3", "text 3"))

    harness.bus.accept = rewrite  # type: ignore[method-assign, assignment]  # for this once
    done = harness.pull()
    assert (done.state, done.not_synchronized) == (ImportState.SUCCEEDED, "changed")
    assert harness.bus.withdrawn == []


def test_only_the_last_import_of_an_origin_answers_a_later_one(harness: Harness) -> None:
    harness.write(("1", "one"), ("2", "two"))
    first = harness.pull()
    assert harness.pull().name == first.name
    harness.write(("1", "one"))
    second = harness.pull()
    harness.write(("1", "one"), ("2", "two"))
    third = harness.pull()
    # Its content is the first one's, but the second had withdrawn of it.
    assert len({first.name, second.name, third.name}) == 3
    assert harness.bus.held == ["one", "two"]
    assert harness.pull().name == third.name
    again = harness.pull(resend=True)
    assert again.name != third.name
    assert again.differences == Differences()


def test_a_pull_that_another_has_taken_over_writes_nothing_more(harness: Harness) -> None:
    harness.write(("1", "one"))
    item, _ = harness.create(harness.spec())
    first, second = (Pull(item.name, item.spec.origin, new_id()) for _ in range(2))
    record = RawRecord("s", "one", {}, "1")
    assert harness.pulled.begin(first)
    assert harness.pulled.note(first, [record])
    assert harness.pulled.begin(second)
    assert not harness.pulled.note(first, [record])
    assert not harness.store.update_import(item, first.generation)
    done = replace(item, state=ImportState.SUCCEEDED)
    assert not harness.store.succeed_import(done, first)
    assert harness.store.succeed_import(done, second)
    assert not harness.pulled.begin(first)


def deaths_at(step: int, *, after: bool) -> Iterator[tuple[bool, bool]]:
    """Death at one call of many."""
    number = 0
    while True:
        yield (number == step and not after, number == step and after)
        number += 1


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_the_end_is_the_same(harness: Harness, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    monkeypatch.setattr("services.ingest.app.runner._BATCH_PIECES", 2)
    monkeypatch.setattr("services.ingest.app.runner._WITHDRAWN_AT_ONCE", 2)
    step, died = 0, True
    while died:
        file, harness.bus = f"f{step}", Bus()
        harness.write(*((str(n), f"text {n}") for n in range(8)), file=file)
        harness.pull(harness.spec(file))
        harness.write(("0", "text 0"), ("1", "edited"), ("9", "new"), ("2", "text 2"), file=file)
        item, _ = harness.create(harness.spec(file))
        died = False
        try:
            harness.runner(deaths_at(step, after=after)).run(item, Interrupt())
        except KilledError:
            died = True
        for left in harness.store.running_imports():
            harness.runner().run(left, Interrupt())
        done = harness.kept(item)
        assert (done.state, done.record_count) == (ImportState.SUCCEEDED, 4), step
        assert done.differences == Differences(added=1, changed=1, gone=5), step
        assert harness.bus.held == ["edited", "new", "text 0", "text 2"], step
        step += 1
    assert step > 10, "nothing was killed"


def test_what_was_imported_before_records_were_lost_is_pulled_again(harness: Harness) -> None:
    harness.write(("1", "one"))
    first, _ = harness.create(harness.spec())
    harness.runner().run(first, Interrupt())
    harness.store.note_loss(datetime.now(UTC))
    harness.store.note_loss(datetime(2020, 1, 1, tzinfo=UTC))
    again, reused = harness.create(harness.spec())
    assert not reused
    harness.runner().run(again, Interrupt())
    assert harness.create(harness.spec()) == (harness.kept(again), True)


def test_the_last_import_of_a_source_counts_whatever_happened_before(harness: Harness) -> None:
    contents = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("xyz"), min_size=1)

    @examples(40)
    @given(st.lists(st.tuples(contents, st.integers(0, 30)), min_size=1, max_size=5))
    def check(history: list[tuple[dict[str, str], int]]) -> None:
        harness.bus = Bus()
        file = new_id()
        for lines, step in history:
            harness.write(*lines.items(), file=file)
            item, reused = harness.create(harness.spec(file))
            if not reused:
                # Killed, perhaps after its source has changed again; its next process pulls what is there then.
                with suppress(KilledError):
                    harness.runner(deaths_at(step, after=bool(step % 2))).run(item, Interrupt())
        for left in harness.store.running_imports():
            harness.runner().run(left, Interrupt())
        harness.pull(harness.spec(file))
        assert harness.bus.held == sorted(history[-1][0].values())

    check()


class HeldRunner:
    """Pulls until it is let go."""

    def __init__(self, store: SqlImportStore) -> None:
        self.store = store
        self.began: list[str] = []
        self.go = threading.Event()

    def announce(self) -> None:
        pass

    def stop(self) -> None:
        self.go.set()

    def run(self, item: Import, interrupt: Interrupt) -> None:
        self.began.append(item.name)
        assert self.go.wait(60)
        self.store.update_import(replace(item, state=ImportState.SUCCEEDED))


async def test_imports_of_one_origin_are_pulled_one_after_the_other(harness: Harness) -> None:
    for file in "ab":
        harness.write(("1", "one"), file=file)
    first, second = (harness.create(harness.spec())[0] for _ in range(2))
    other, _ = harness.create(harness.spec("b"))
    runner: Any = HeldRunner(harness.store)
    worker = ImportWorker(harness.store, runner, harness.intake(), 4)
    task = asyncio.create_task(worker.run())

    async def until(began: set[str]) -> None:
        await eventually(lambda: set(runner.began) == began)

    await until({first.name, other.name})
    # Cancelled, it still may publish: the next one waits until it has ended.
    harness.store.update_import(replace(first, state=ImportState.CANCELLED))
    await worker._take_up(asyncio.get_running_loop())
    assert second.name not in runner.began
    runner.go.set()
    await until({first.name, other.name, second.name})
    task.cancel()
    with ThreadPoolExecutor(1) as pool:
        await asyncio.get_running_loop().run_in_executor(pool, worker.close)


def test_a_source_that_may_be_empty_is_withdrawn_and_another_one_is_not(harness: Harness) -> None:
    may_be = replace(harness.spec(), may_be_empty=True)
    harness.write()
    assert harness.pull(may_be).state is ImportState.SUCCEEDED
    harness.write(("1", "one"), ("2", "two"))
    harness.pull(may_be)
    harness.write()
    refused = harness.pull()
    assert refused.failure is not None
    assert refused.failure.reason == "EMPTY_SOURCE"
    assert harness.bus.held == ["one", "two"]
    done = harness.pull(may_be)
    assert (done.state, done.record_count, done.differences.gone) == (ImportState.SUCCEEDED, 0, 2)
    assert done.spec == may_be
    assert harness.bus.held == []
    # What is there but cannot be read is not an empty source.
    harness.write("no JSON")
    assert harness.pull(may_be).state is ImportState.FAILED


def test_no_caller_pushes_records_that_pretend_to_be_feedback(harness: Harness) -> None:
    intake = harness.intake()
    records = [RawRecord("s", "fine", {}), RawRecord("answers.reviews", "poison", {"label": "negative"})]
    with pytest.raises(InvalidArgumentError) as caught:
        intake.accept(records)
    assert caught.value.reason == "RESERVED_SOURCE"
    assert [violation.field for violation in caught.value.violations] == ["records[1].source"]
    with pytest.raises(InvalidArgumentError):
        intake.accept_traced([Accepted(record) for record in records])
    assert harness.bus.texts == {}
