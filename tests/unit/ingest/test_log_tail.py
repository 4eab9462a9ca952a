"""Logs: every complete line once, through growth, rotation, truncation, compression, and imports that end early."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.adapters.ledger import TemporaryLedger
from services.ingest.adapters.pulled_store import SqlPulledStore
from services.ingest.adapters.source_store import SqlSourceStore
from services.ingest.adapters.stores import SqlImportStore
from services.ingest.app.imports import Imports
from services.ingest.app.interrupt import Interrupt
from services.ingest.app.ports import Accepted, Position
from services.ingest.app.runner import ImportRunner
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import Import, ImportState, SourceSpec, check_spec
from services.ingest.engine.file_format import ReadFile
from services.ingest.engine.formats.log_files import LogFiles
from services.kit.clock import SystemClock
from services.kit.errors import InvalidArgumentError
from tests.conftest import OpenDatabase
from tests.examples import examples
from tests.sources import file_sources
from tests.unit.ingest.test_runner import Bus

PATTERN = r"(?P<time>\S+) (?P<level>[A-Z]+) (?P<message>.*)"


class RecordingBus(Bus):
    """Keeps whole records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[RawRecord] = []

    def accept(self, records: Sequence[Accepted], import_name: str = "", origin: str = "") -> None:
        super().accept(records, import_name, origin)
        self.records += [item.record for item in records]


class Collector:
    """Imports of the logs in one folder, on the real stores."""

    def __init__(self, folder: Path, open_database: OpenDatabase) -> None:
        self.folder, self.bus = folder, RecordingBus()
        engine = open_database("ingest")
        self.store = SqlImportStore(engine)
        sources = file_sources(folder)
        self.imports = Imports(self.store, sources, SqlSourceStore(self.store._engine), SystemClock())
        self.runner = ImportRunner(
            self.store, SqlPulledStore(engine), sources, self.bus, TemporaryLedger, SystemClock()
        )

    def run(self, *, resend: bool = False, max_records: int = 0, pattern: str = "") -> Import:
        kind = LogFiles(f"{self.folder}/app.log*", line_pattern=pattern)
        spec = SourceSpec("logs", kind, max_records)
        begun, _ = self.imports.create(spec, "", "", Interrupt(), resend=resend)
        self.runner.run(begun, Interrupt())
        ended = self.store.import_named(begun.name)
        assert ended is not None
        return ended

    def write(self, *texts: str, name: str = "app.log", mode: str = "a") -> None:
        with (self.folder / name).open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps({"message": text}) + "\n" for text in texts)


@pytest.fixture
def logs(tmp_path: Path, open_service_database: OpenDatabase) -> Collector:
    (tmp_path / "logs").mkdir()
    return Collector(tmp_path / "logs", open_service_database)


def test_an_import_brings_what_was_added_and_withdraws_nothing(logs: Collector) -> None:
    logs.write("one", "two")
    first = logs.run()
    assert (first.state, first.record_count, first.differences.added) == (ImportState.SUCCEEDED, 2, 2)
    logs.write("three")
    second = logs.run()
    assert (second.record_count, second.not_synchronized) == (1, "incremental")
    third = logs.run()
    assert (third.state, third.record_count) == (ImportState.SUCCEEDED, 0)
    assert logs.bus.texts == ["one", "two", "three"]


def test_a_line_counts_once_it_is_complete(logs: Collector) -> None:
    logs.write("one")
    with (logs.folder / "app.log").open("a") as file:
        file.write('{"message": "tw')
    assert logs.run().record_count == 1
    with (logs.folder / "app.log").open("a") as file:
        file.write('o"}\n')
    assert logs.run().record_count == 1
    assert logs.bus.texts == ["one", "two"]
    (logs.folder / "app.log.new").write_text('{"message": "no end yet"}')
    assert logs.run().record_count == 0


@pytest.mark.parametrize("packed", [False, True])
def test_a_rotated_file_is_not_read_twice_and_its_last_lines_are_not_missed(logs: Collector, packed: bool) -> None:
    logs.write("one", "two")
    logs.run()
    logs.write("three")
    rotated = logs.folder / "app.log.1"
    (logs.folder / "app.log").rename(rotated)
    if packed:
        (logs.folder / "app.log.1.gz").write_bytes(gzip.compress(rotated.read_bytes()))
        rotated.unlink()
    logs.write("four")
    logs.run()
    assert sorted(logs.bus.texts) == ["four", "one", "three", "two"]
    assert logs.run().record_count == 0


def test_a_file_that_is_copied_and_truncated_is_read_from_its_start(logs: Collector) -> None:
    logs.write("one", "two")
    logs.run()
    logs.write("three")
    shutil.copy(logs.folder / "app.log", logs.folder / "app.log.1")
    logs.write("four", mode="w")
    logs.run()
    assert Counter(logs.bus.texts) == Counter(["one", "two", "three", "four"])
    # Grown beyond what was read of it before, with other content.
    logs.write("a much longer line than those before", "and another", mode="w")
    logs.run()
    assert len(logs.bus.texts) == 6


def test_files_that_begin_alike_are_kept_apart(logs: Collector) -> None:
    logs.write("started", "one", name="app.log.a")
    logs.write("started", "two", name="app.log.b")
    logs.run()
    logs.write("three", name="app.log.b")
    logs.run()
    # The line that both have at the same place is one record.
    assert Counter(logs.bus.texts) == Counter(["started", "one", "two", "three"])


def test_an_import_that_ends_early_is_continued_by_the_next_one(logs: Collector) -> None:
    logs.write(*map(str, range(7)))
    logs.write("other", name="app.log.1")
    found = [logs.run(max_records=3).record_count for _ in range(4)]
    assert found == [3, 3, 2, 0]
    assert sorted(logs.bus.texts) == sorted([*map(str, range(7)), "other"])


def test_a_process_that_dies_before_the_end_repeats_the_same_records(logs: Collector) -> None:
    logs.write("one", "two")
    succeed, logs.store.succeed_import = logs.store.succeed_import, lambda *_: False  # type: ignore[method-assign]
    running = logs.run()
    assert running.state is ImportState.RUNNING
    logs.store.succeed_import = succeed  # type: ignore[method-assign]
    logs.runner.run(running, Interrupt())
    ids = [record.record_id for record in logs.bus.records]
    assert ids[:2] == ids[2:]
    assert logs.run().record_count == 0


def test_what_was_lost_is_read_again_under_the_same_ids(logs: Collector) -> None:
    logs.write("one", "two")
    logs.run()
    assert logs.run(resend=True).record_count == 2
    ids = [record.record_id for record in logs.bus.records]
    assert ids[:2] == ids[2:]


def test_lines_by_an_expression_and_those_that_do_not_match(logs: Collector) -> None:
    lines = ["2026-01-02T03:04:05Z ERROR it broke", "    at main.py:3", "", "2026-01-02T03:04:06Z INFO 好"]
    (logs.folder / "app.log").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = logs.run(pattern=PATTERN)
    assert (done.record_count, done.rejected_count) == (2, 1)
    assert [(r.text, r.attributes["level"]) for r in logs.bus.records] == [("it broke", "ERROR"), ("好", "INFO")]
    assert [(refusal.location, refusal.reason) for refusal in logs.bus.refused] == [
        (f"file://{logs.folder}/app.log:2", "NO_MATCH")
    ]
    with (logs.folder / "app.log").open("a") as file:
        file.write("broken\n")
    logs.run(pattern=PATTERN)
    assert logs.bus.refused[-1].location == f"file://{logs.folder}/app.log:5"


def test_the_event_time_is_that_of_the_line() -> None:
    kind = LogFiles("/x", line_pattern=PATTERN, time_field="time")
    (piece,) = (line for _, line in kind.split(_file(b"2026-01-02T03:04:05+01:00 INFO x\n")))
    assert replace(kind, id_field="level").record("s", _file(b""), piece).record_id == "INFO"
    assert kind.record("s", _file(b""), piece).event_time == datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)


def _file(content: bytes) -> ReadFile:
    return ReadFile("a.log", "", [content])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (LogFiles("/x", line_pattern="(?P<message>"), "is not a valid RE2 expression"),
        (LogFiles("/x", line_pattern=r"(?P<message>.*)(?=x)"), "is not a valid RE2 expression"),
        (LogFiles("/x", line_pattern="(?P<text>.*)"), "line_pattern has no group 'message'"),
        (LogFiles("/x", line_pattern=PATTERN, time_field="when"), "line_pattern has no group 'when'"),
        (LogFiles("https://example.com/app.log"), "push those of other machines"),
    ],
)
def test_what_is_wrong_with_the_options_is_named(kind: LogFiles, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words.replace("(", r"\(")):
        check_spec(SourceSpec("s", kind))


ACTIONS = st.lists(
    st.sampled_from(["write", "write", "write", "partial", "rotate", "pack", "truncate", "copy", "import"]),
    max_size=25,
)


@examples(60)
@given(ACTIONS, st.sampled_from([0, 2]))
def test_every_line_is_collected_once_whatever_happens_to_the_files(actions: list[str], max_records: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder, written, seen = Path(scratch), list[str](), list[RawRecord | Refusal]()
        current, position = folder / "app.log", Position()
        sources = file_sources(folder)
        spec = SourceSpec("logs", LogFiles(f"{folder}/*"))

        def collect(limit: int) -> None:
            nonlocal position
            if not any(folder.iterdir()):
                return
            reading = Position(position.reached())
            pieces = sources.read(spec, sources.survey(spec, Interrupt()), Interrupt(), reading)
            for count, piece in enumerate(pieces, 1):
                seen.append(piece)
                if count == limit:
                    break
            position = reading

        def append(text: str) -> None:
            with current.open("a") as file:
                file.write(text)

        open_line = ""
        for number, action in enumerate([*actions, "write"]):
            if action == "write":
                append((open_line and '"}\n') + f'{{"message": "line {number}"}}\n')
                written += [*([open_line] if open_line else []), f"line {number}"]
                open_line = ""
            elif action == "partial" and not open_line:
                open_line = f"part {number}"
                append(f'{{"message": "{open_line}')
            elif action in ("rotate", "pack", "truncate", "copy") and current.exists() and not open_line:
                # Nothing is lost by truncation that was collected before it.
                if action == "truncate":
                    collect(0)
                    current.write_bytes(b"")
                elif action == "copy":
                    shutil.copy(current, folder / f"app.log.{number}")
                    current.write_bytes(b"")
                else:
                    rotated = folder / f"app.log.{number}"
                    current.rename(rotated)
                    if action == "pack":
                        (folder / f"app.log.{number}.gz").write_bytes(gzip.compress(rotated.read_bytes()))
                        rotated.unlink()
            elif action == "import":
                collect(max_records)
        collect(0)
        records = [piece for piece in seen if isinstance(piece, RawRecord)]
        assert len(records) == len(seen)
        # A line that is read again is the same record.
        by_id = {record.record_id: record.text for record in records}
        assert Counter(by_id.values()) == Counter(written)
        again = len(seen)
        collect(0)
        assert len(seen) == again


def test_a_spec_of_logs_is_one_of_its_own() -> None:
    one = SourceSpec("s", LogFiles("/x"))
    assert one.kind.incremental
    assert replace(one, source="t").origin != one.origin
