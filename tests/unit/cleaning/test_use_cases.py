"""Use cases on a real database: what a crash between two steps leaves, and what a repeat changes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from services.cleaning.adapters.answer_store import SqlAnswerStore
from services.cleaning.adapters.dataset_store import SqlDatasetStore
from services.cleaning.adapters.loss_store import SqlLossStore
from services.cleaning.adapters.models import AllModels
from services.cleaning.adapters.record_store import SqlRecordStore
from services.cleaning.adapters.served_models import ServedModels
from services.cleaning.adapters.snapshots import FolderSnapshots
from services.cleaning.adapters.synonym_tables import FolderTables
from services.cleaning.adapters.translator import Translators
from services.cleaning.adapters.vault import Vault
from services.cleaning.app.builder import Builder
from services.cleaning.app.cards import Cards
from services.cleaning.app.datasets import Datasets
from services.cleaning.app.erasures import Erasures
from services.cleaning.app.explanations import Explanations
from services.cleaning.app.ports import Announcement, Arrival, Fate, Placement
from services.cleaning.app.recipe_cache import RecipeCache
from services.cleaning.app.records import NO_KEY, Records
from services.cleaning.app.rewriting import Rewriting
from services.cleaning.domain.dataset import (
    AwaitedImport,
    Dataset,
    DatasetSpec,
    DatasetVersion,
    HoldoutSpec,
    ImportCount,
    VersionState,
)
from services.cleaning.domain.originals import OriginalsPolicy
from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.domain.record import RawRecord, Rejection, Withdrawal
from services.cleaning.engine.registry import default_registry
from services.kit.bus.port import LostMessages
from services.kit.errors import (
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    bus_away,
    disk_full,
)
from services.kit.ids import new_id
from services.kit.network_rules import NetworkRules
from services.kit.storage.artifacts import ArtifactStore
from tests.conftest import OpenDatabase
from tests.recipes import parse_operators

NAME = "datasets/news"
KEY = bytes(range(32))


class ManualClock:
    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 1, tzinfo=UTC)
        self.seconds = 0.0

    def now(self) -> datetime:
        self.moment += timedelta(milliseconds=1)
        return self.moment

    def monotonic(self) -> float:
        return self.seconds


class RecordingAnnouncer:
    """Keeps what was announced; the next `failures` calls fail after they have kept it, as in a crash."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, str, str]] = []
        self.built: list[str] = []
        self.failures = 0

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise UnavailableError("the bus is unavailable")

    def verdicts(self, announcements: Sequence[Announcement]) -> None:
        self.kept += [(a.verdict.dataset, a.verdict.record_id, a.verdict.cleaned.text) for a in announcements]
        self._fail()

    def records_lost(self, lost: LostMessages, moment: datetime) -> None:
        raise NotImplementedError

    def version_built(self, version: DatasetVersion) -> None:
        self.built.append(version.name)
        self._fail()


class Pushed:
    """What the bus holds: messages that are still to be read, or an error."""

    def __init__(self) -> None:
        self.left = 0
        self.error: Exception | None = None
        self.asked: list[str] = []

    def unread(self, build: str) -> int:
        if self.error is not None:
            raise self.error
        self.asked.append(build)
        return self.left

    def forget(self, build: str) -> None:
        self.asked = [each for each in self.asked if each != build]


class Harness:
    def __init__(self, engine: Engine, folder: Path) -> None:
        self.pushed = Pushed()
        self.clock, self.announcer = ManualClock(), RecordingAnnouncer()
        self.store, self.datasets_store = SqlRecordStore(engine, Vault([KEY])), SqlDatasetStore(engine)
        self.folder, self.losses = folder, SqlLossStore(engine)
        self.answers, self.secrets = SqlAnswerStore(engine), dict[str, str]()
        self.patience_s, self.idle_s = 60.0, 60.0
        self.originals = OriginalsPolicy()
        self.restart()

    def restart(self) -> None:
        """A new process on the same state."""
        models = ServedModels(NetworkRules(["127.0.0.1:*", "models.invalid:*"]), self.secrets.get, timeout_s=5)
        recipes = RecipeCache(default_registry(), FolderTables(self.folder / "data"), models)
        self.translators = Translators(timeout_s=120, idle_s=self.idle_s)
        every = AllModels(models, self.translators)
        self.recipes = recipes
        self.rewriting = Rewriting(self.answers, every, self.clock, calls_at_once=2, patience_s=self.patience_s)
        self.records = Records(self.store, self.datasets_store, recipes, self.announcer, self.originals)
        snapshots = FolderSnapshots(ArtifactStore(f"file://{self.folder}"))
        versions = self.datasets_store
        self.datasets = Datasets(versions, versions, self.store, snapshots, recipes, self.pushed, self.clock)
        self.cards = Cards(self.datasets, snapshots)
        self.explanations = Explanations(self.records, self.datasets_store, self.datasets_store, snapshots, recipes)
        self.erasures = Erasures(self.store, self.datasets_store, self.datasets_store, snapshots, self.clock)
        self.builder = Builder(
            records=self.store,
            datasets=self.datasets_store,
            versions=self.datasets_store,
            snapshots=snapshots,
            recipes=recipes,
            record_cases=self.records,
            announcer=self.announcer,
            clock=self.clock,
            losses=self.losses,
            pushed=self.pushed,
            rewriting=self.rewriting,
            await_timeout_s=30,
            lost_patience_s=5,
        )

    def put(self, *items: Any, name: str = NAME) -> None:
        self.datasets.put(name, DatasetSpec(("news",), tuple(parse_operators(list(items))), HoldoutSpec(0.2)))

    def build(self, **awaited: int) -> str:
        imports = [AwaitedImport(f"imports/{key}", count) for key, count in awaited.items()]
        return self.datasets.build_version(NAME, imports, "", "")[0].name

    def work(self) -> None:
        while self.builder.step():
            pass


@pytest.fixture
def harness(tmp_path: Path, open_service_database: OpenDatabase) -> Harness:
    return Harness(open_service_database("cleaning"), tmp_path / "artifacts")


_ARRIVALS = itertools.count(1)


def arrival(record_id: str, text: str, import_name: str = "imports/a", source: str = "news") -> Arrival:
    """A record that arrives after those that were made before."""
    return Arrival(RawRecord(record_id, source, text, {}, import_name, arrival=next(_ARRIVALS)))


def test_a_redelivery_changes_and_announces_nothing(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    batch = [arrival("a", " one "), arrival("b", "two"), arrival("c", "other source", source="mail")]
    harness.records.collect(batch)
    harness.records.collect(batch)
    assert harness.announcer.kept == [(NAME, "a", "one"), (NAME, "b", "two")]
    assert harness.store.import_counts(["imports/a"]) == {"imports/a": ImportCount(3)}
    assert {record_id for record_id, _ in harness.store.content_digests(NAME, DatasetSpec(("news",)), "")} == {"a", "b"}


def test_a_record_that_changed_is_announced_again(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    harness.records.collect([arrival("a", "old"), arrival("a", "new")])
    assert harness.announcer.kept == [(NAME, "a", "new")]
    harness.records.collect([arrival("a", "newer")])
    assert harness.announcer.kept[1:] == [(NAME, "a", "newer")]
    assert harness.records.record("a").record.text == "newer"


def test_equal_ids_of_two_sources_take_nothing_from_each_other(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    harness.datasets.put("datasets/mail", DatasetSpec(("mail",), tuple(parse_operators(["normalize_whitespace"]))))
    harness.records.collect([arrival(str(n), f"news {n}") for n in range(1, 11)])
    harness.records.collect([arrival(str(n), f"mail {n}", "imports/b", "mail") for n in range(1, 11)])
    for dataset, source in ((NAME, "news"), ("datasets/mail", "mail")):
        name = harness.datasets.build_version(dataset, [], "", "")[0].name
        harness.work()
        snapshot = harness.datasets.version(name).snapshot
        assert snapshot is not None
        assert (snapshot.records_in, snapshot.train_count + snapshot.holdout_count) == (10, 10)
        assert harness.records.record("7", source).record.text == f"{source} 7"
    assert len(harness.announcer.kept) == 20
    with pytest.raises(InvalidArgumentError, match=r"\(mail, news\); name the source"):
        harness.records.record("7")
    with pytest.raises(NotFoundError, match="sources/web/records/7"):
        harness.records.record("7", "web")


def test_a_record_is_explained_from_its_original_to_the_newest_version(harness: Harness) -> None:
    harness.put("normalize_whitespace", "mask_pii", {"length_filter": {"min_chars": 8}}, "exact_dedup")
    harness.datasets.put("datasets/other", DatasetSpec(("mail",), ()))
    texts = {"a": "call  13812345678", "b": "call 13912345678", "c": "tiny", "d": "another one that stays"}
    harness.records.collect([arrival(key, text) for key, text in texts.items()])
    (early,) = harness.explanations.explain("a", "news")[1]
    assert (early.dataset, early.version, early.fate) == (NAME, None, None)
    assert [effect.operator for effect in early.explanation.effects] == ["normalize_whitespace", "mask_pii"]
    harness.build()
    harness.work()
    harness.records.collect([arrival("e", "after the version")])
    found = {key: harness.explanations.explain(key, "")[1][0] for key in "abcde"}
    assert found["a"].version is not None
    assert {item.version and item.version.name for item in found.values()} == {f"{NAME}/versions/1"}
    assert found["b"].fate == Fate(
        Placement.REJECTED, Rejection("exact_duplicate", "duplicate_of=sources/news/records/a", "exact_dedup")
    )
    assert found["b"].explanation.cleaned.text == "call [PHONE]"
    for key, operator in (("b", "exact_dedup"), ("c", "length_filter")):
        fate = found[key].fate
        assert fate is not None
        assert fate.rejection is not None
        assert fate.rejection.operator == operator
    sides = {key: item.fate.placement for key, item in found.items() if item.fate}
    assert sides["e"] is Placement.ABSENT
    assert {sides["a"], sides["d"]} <= {Placement.TRAIN, Placement.HOLDOUT}
    with pytest.raises(NotFoundError):
        harness.explanations.explain("nobody", "news")


def test_an_older_event_neither_replaces_nor_announces(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    harness.records.collect([Arrival(RawRecord("a", "news", "new", {}, event_time=2, arrival=1))])
    harness.records.collect([Arrival(RawRecord("a", "news", "old", {}, event_time=1, arrival=2))])
    harness.work()
    assert harness.announcer.kept == [(NAME, "a", "new")]
    assert [v.cleaned.text for _, v in harness.store.with_verdicts(NAME, DatasetSpec(("news",))) if v] == ["new"]


def test_a_withdrawn_record_leaves_the_next_version_and_may_come_back(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    pulled = [RawRecord(r, "news", f"text {r}", {}, "imports/a", 1, n, "file") for n, r in enumerate("abc", 1)]
    pushed = RawRecord("b", "news", "text b", {}, "", 1, 2)
    harness.records.collect([Arrival(record) for record in (*pulled, pushed)])
    gone = [Withdrawal(r, "news", "imports/b", "file", 10) for r in "bc"]
    name = harness.datasets.build_version(NAME, [AwaitedImport("imports/b", 1, 2, 1)], "", "")[0].name
    harness.records.collect([Arrival(replace(pulled[0], text="edited", import_name="imports/b", arrival=9))])
    harness.work()
    assert harness.datasets.version(name).state is VersionState.BUILDING
    harness.records.collect([], gone)
    harness.work()
    snapshot = harness.datasets.version(name).snapshot
    assert snapshot is not None
    # What was pushed, too, stays.
    assert snapshot.records_in == 2
    assert harness.records.record("c").withdrawn
    assert not harness.records.record("b").withdrawn
    harness.records.collect([Arrival(replace(pulled[2], arrival=11))])
    assert not harness.records.record("c").withdrawn


def test_the_same_record_in_two_imports_counts_in_both(harness: Harness) -> None:
    harness.records.collect([arrival("a", "x", "imports/one"), arrival("a", "x", "imports/two")])
    assert harness.store.import_counts(["imports/one", "imports/two"]) == {
        "imports/one": ImportCount(1),
        "imports/two": ImportCount(1),
    }


def test_what_a_crash_kept_from_the_bus_is_announced_later(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    harness.announcer.failures = 1
    with pytest.raises(UnavailableError):
        harness.records.collect([arrival("a", "one")])
    harness.restart()
    harness.work()
    assert harness.announcer.kept == [(NAME, "a", "one")] * 2
    harness.work()
    assert len(harness.announcer.kept) == 2


def test_records_from_before_a_data_set_belong_to_it(harness: Harness) -> None:
    harness.records.collect([arrival(f"r{n:04}", f"text {n}") for n in range(1200)])
    assert harness.announcer.kept == []
    harness.put("normalize_whitespace")
    harness.work()
    assert len({record_id for _, record_id, _ in harness.announcer.kept}) == 1200


def test_a_hold_out_that_training_has_nearly_seen_is_reported(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    body = " ".join(f"word{n}" for n in range(60))
    records = [arrival(f"r{n}", f"{body} {n}") for n in range(20)]
    harness.records.collect(records)
    harness.put("normalize_whitespace")
    name = harness.build()
    harness.work()
    assert harness.datasets.version(name).state is VersionState.READY
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert f"{name}: 5 of 5 texts of the hold-out are near duplicates" in warning
    caplog.clear()
    harness.put("normalize_whitespace", {"near_dedup": {"threshold": 0.8}})
    harness.build()
    harness.work()
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_a_recipe_that_changes_while_records_are_cleaned_again_reaches_them_all(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    harness.records.collect([arrival(f"r{n:04}", f"text {n}") for n in range(1200)])
    harness.put({"regex_replace": {"pattern": "text", "replacement": "one"}})
    assert harness.builder.step()
    harness.put({"regex_replace": {"pattern": "text", "replacement": "two"}})
    assert harness.builder.step()
    # Behind and before what is clean by now.
    harness.records.collect([arrival("r0000a", "text a"), arrival("z", "text z")])
    harness.work()
    dataset = harness.datasets.get(NAME)
    assert not harness.store.stale(dataset, NO_KEY, 1)
    texts = {v.cleaned.text for _, v in harness.store.with_verdicts(NAME, DatasetSpec(("news",))) if v is not None}
    assert texts == {f"two {n}" for n in [*range(1200), "a", "z"]}


def test_a_recipe_put_back_before_anyone_looked_leaves_nothing_stale(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    harness.work()
    harness.put({"regex_replace": {"pattern": "o", "replacement": "0"}})
    harness.records.collect([arrival("a", "one")])
    harness.put("normalize_whitespace")
    harness.work()
    assert [text for _, _, text in harness.announcer.kept] == ["0ne", "one"]


def test_a_build_waits_for_the_awaited_and_reports_how_far_it_is(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    name = harness.build(a=3)
    harness.records.collect([arrival("a", "one"), arrival("b", "two")])
    harness.work()
    version = harness.datasets.version(name)
    assert version.state is VersionState.BUILDING
    assert version.progress is not None
    assert (version.progress.phase, version.progress.done, version.progress.total) == ("await", 2, 3)
    harness.restart()
    harness.records.collect([arrival("c", "three")])
    harness.work()
    version = harness.datasets.version(name)
    assert version.state is VersionState.READY
    assert version.snapshot is not None
    assert version.snapshot.train_count + version.snapshot.holdout_count == 3
    assert harness.announcer.built == [name]


def test_a_build_whose_records_never_come_fails_and_says_which(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    name = harness.build(a=2)
    harness.records.collect([arrival("a", "one")])
    harness.work()
    harness.clock.seconds = 29
    harness.work()
    assert harness.datasets.version(name).state is VersionState.BUILDING
    harness.clock.seconds = 31
    harness.work()
    failure = harness.datasets.version(name).failure
    assert failure is not None
    assert failure.reason == "AWAITED_RECORDS_MISSING"
    assert failure.metadata == {"imports/a": "1 of 2"}


def test_a_build_whose_records_the_bus_has_lost_says_how_many_and_what_to_do(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    before, after = new_id(), f"{int(time.time() * 1000) + 60_000:012x}{'0' * 14}"
    for _ in range(2):
        harness.losses.note_lost(LostMessages("tidemill.records.raw", 2, 10, 358), datetime.now(UTC))
    first, second = harness.build(**{before: 500}), harness.build(**{after: 500})
    harness.records.collect([arrival("a", "one", f"imports/{before}"), arrival("b", "two", f"imports/{after}")])
    harness.work()
    harness.clock.seconds = 6
    harness.work()
    failure = harness.datasets.version(first).failure
    assert failure is not None
    assert failure.reason == "RECORDS_LOST"
    assert failure.metadata == {f"imports/{before}": "1 of 500", "lost_messages": "348"}
    assert "resend" in failure.message
    # What was imported after the loss had been found was not hit by it.
    assert harness.datasets.version(second).state is VersionState.BUILDING


def test_what_is_left_may_still_arrive_after_a_loss_was_found_late(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    before = new_id()
    name = harness.build(**{before: 500})
    harness.work()
    harness.clock.seconds = 20
    harness.losses.note_lost(LostMessages("tidemill.records.raw", 2, 10, 358), datetime.now(UTC))
    harness.work()
    assert harness.datasets.version(name).state is VersionState.BUILDING
    harness.records.collect([arrival("a", "one", f"imports/{before}")])
    harness.work()
    harness.clock.seconds = 26
    harness.work()
    failure = harness.datasets.version(name).failure
    assert failure is not None
    assert failure.metadata == {f"imports/{before}": "1 of 500", "lost_messages": "348"}


def test_a_build_keeps_the_recipe_it_was_asked_with(harness: Harness) -> None:
    harness.put({"length_filter": {"min_chars": 4}})
    harness.records.collect([arrival("a", "one"), arrival("b", "three")])
    name = harness.build()
    harness.put("normalize_whitespace")
    harness.work()
    snapshot = harness.datasets.version(name).snapshot
    assert snapshot is not None
    assert dict(snapshot.rejected_by_reason) == {"too_short": 1}


def test_an_event_of_a_version_is_repeated_until_it_is_out(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    name = harness.build()
    harness.announcer.failures = 1
    with pytest.raises(UnavailableError):
        harness.work()
    harness.restart()
    harness.work()
    harness.work()
    assert harness.announcer.built == [name, name]


def test_equal_content_is_the_version_that_exists(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    harness.records.collect([arrival("a", "one")])
    first = harness.build()
    assert [harness.build() for _ in range(20)] == [first] * 20
    harness.work()
    assert [harness.build() for _ in range(20)] == [first] * 20
    for _ in range(2):
        found, existed = harness.datasets.build_version(NAME, [], "request", "")
        assert (found.name, existed) == (first, True)
    harness.records.collect([arrival("b", "two")])
    second = harness.build()
    harness.work()
    assert second != first
    # What a request was answered with it is answered with again.
    assert harness.datasets.build_version(NAME, [], "request", "")[0].name == first
    # Whoever gave its build a name may cancel it, so that no one else waits for it.
    awaited = [AwaitedImport("imports/z", 1)]
    own = [harness.datasets.build_version(NAME, awaited, request, "")[0].name for request in ("r1", "r2")]
    assert len({*own, second}) == 3
    harness.records.collect([Arrival(replace(arrival("b", "two").record, import_name="imports/z"))])
    harness.work()
    assert [harness.datasets.version(name).reused for name in own] == [True, True]
    harness.put("normalize_whitespace", {"length_filter": {"min_chars": 1}})
    assert harness.build() not in (first, second, *own)


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_snapshot_is_reported_and_written_again(
    harness: Harness, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    harness.put("normalize_whitespace")
    harness.records.collect([arrival(f"r{n}", f"text {n}") for n in range(50)])
    harness.build()
    harness.work()
    snapshot = harness.datasets.version(f"{NAME}/versions/1").snapshot
    assert snapshot is not None
    path = Path(snapshot.uri.removeprefix("file://")) / "train.parquet"
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:-100] if damage == "truncated" else whole[:100] + b"x" + whole[101:])
    again = harness.build()
    assert again == f"{NAME}/versions/2"
    harness.work()
    version = harness.datasets.version(again)
    assert (version.state, version.snapshot) == (VersionState.READY, snapshot)
    assert path.read_bytes() == whole
    (line,) = [record.getMessage() for record in caplog.records if "SNAPSHOT_DAMAGED" in record.getMessage()]
    assert "train.parquet" in line


def test_a_failed_build_names_the_reason_and_stops_no_other(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    harness.records.collect([arrival("a", "one")])
    (harness.folder / "datasets").mkdir(parents=True)
    (harness.folder / "datasets" / "news").write_text("a file where a folder must be")
    name = harness.build()
    harness.put("normalize_whitespace", name="datasets/other")
    other = harness.datasets.build_version("datasets/other", [], "", "")[0].name
    harness.work()
    version = harness.datasets.version(name)
    assert version.state is VersionState.FAILED
    assert version.failure is not None
    # A defect of the machine that no release knows: the log of the service has it.
    assert version.failure.reason == "UNEXPECTED"
    assert "NotADirectoryError" in version.failure.message or "FileExistsError" in version.failure.message
    assert harness.datasets.version(other).state is VersionState.READY


def test_a_build_that_waits_for_disk_says_so_until_it_continues(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.put("normalize_whitespace")
    harness.records.collect([arrival("a", "one")])
    name = harness.build()
    with monkeypatch.context() as patch:
        patch.setattr(harness.builder._snapshots, "write", raising(disk_full("/state/datasets")))
        with pytest.raises(ResourceExhaustedError):
            harness.work()
        waiting = harness.datasets.version(name)
        assert waiting.state is VersionState.BUILDING
        assert waiting.progress is not None
        assert waiting.progress.waiting is not None
        assert waiting.progress.waiting.reason == "DISK_FULL"
        assert "Free some space" in waiting.progress.waiting.message
    harness.work()
    done = harness.datasets.version(name)
    assert done.state is VersionState.READY
    assert done.progress is not None
    assert done.progress.waiting is None


def raising(error: Exception) -> Callable[..., Any]:
    def do(*_: object) -> None:
        raise error

    return do


def test_a_recipe_of_another_release_stops_nothing_else(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    harness.records.collect([arrival("a", "one")])
    gone = DatasetSpec(("news",), (OperatorSpec("operator_of_tomorrow"),))
    now = harness.clock.now()
    harness.datasets_store.put_dataset(Dataset("datasets/gone", gone, "0" * 64, now, now))
    harness.datasets.refresh_digests()
    harness.records.collect([arrival("b", "two")])
    harness.work()
    assert [record_id for _, record_id, _ in harness.announcer.kept] == ["a", "b"]
    name = harness.datasets.build_version("datasets/gone", [], "", "")[0].name
    harness.work()
    failure = harness.datasets.version(name).failure
    assert failure is not None
    assert failure.reason == "INVALID_RECIPE"


def test_putting_the_same_twice_is_putting_it_once(harness: Harness) -> None:
    harness.put("normalize_whitespace")
    first = harness.datasets.get(NAME)
    harness.put({"normalize_whitespace": {}})
    assert harness.datasets.get(NAME) == first


def pushed_to(harness: Harness) -> None:
    """A data set over a source that others push to."""
    harness.datasets.put(NAME, DatasetSpec(("news",), holdout=HoldoutSpec(0.2), pushed_sources=("news",)))


def test_a_version_waits_for_what_was_pushed_before_it_was_asked_for(harness: Harness) -> None:
    pushed_to(harness)
    harness.pushed.left = 3
    name = harness.build()
    assert not harness.builder.step()
    version = harness.datasets.version(name)
    assert (version.state, version.progress and version.progress.total) == (VersionState.BUILDING, 3)
    harness.records.collect([arrival("1", "one", ""), arrival("2", "two", "")])
    harness.pushed.left = 1
    harness.builder.step()
    version = harness.datasets.version(name)
    assert (version.state, version.progress and version.progress.done) == (VersionState.BUILDING, 2)
    harness.restart()
    harness.records.collect([arrival("3", "three", "")])
    harness.pushed.left = 0
    harness.work()
    version = harness.datasets.version(name)
    assert (version.state, version.snapshot and version.snapshot.records_in) == (VersionState.READY, 3)
    # Equal content is the version that exists, and no one remembers the builds.
    assert harness.build() == name
    assert harness.pushed.asked == []


def test_a_version_waits_for_a_bus_that_does_not_say_what_was_pushed(harness: Harness) -> None:
    pushed_to(harness)
    harness.pushed.error = bus_away("Kafka did not say what is still to be read", OSError("refused"))
    name = harness.build()
    with pytest.raises(UnavailableError):
        harness.builder.step()
    progress = harness.datasets.version(name).progress
    assert progress is not None
    assert progress.waiting is not None
    assert progress.waiting.reason == "BUS_AWAY"
    harness.pushed.error = None
    harness.work()
    version = harness.datasets.version(name)
    assert version.state is VersionState.READY
    assert version.progress is not None
    assert version.progress.waiting is None


def test_a_data_set_that_only_imports_bring_does_not_ask_the_bus(harness: Harness) -> None:
    harness.pushed.error = bus_away("Kafka is away", OSError("refused"))
    harness.put()
    harness.build()
    harness.work()
    assert harness.pushed.asked == []
