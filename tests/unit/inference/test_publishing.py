"""Publishing on a real database and real folders, with a server that does what the test wants."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import fsspec
import pytest
from google.protobuf import text_format
from sqlalchemy import Engine, event
from tritonclient.grpc import model_config_pb2

from services.inference.adapters.builds import ArtifactBuilds
from services.inference.adapters.model_store import SqlModelStore
from services.inference.adapters.triton_repository import TritonRepository
from services.inference.app.loading import ServingParts
from services.inference.app.publishing import Publishing
from services.inference.app.reconciling import Reconciler
from services.inference.app.restarts import RestartQueue
from services.inference.app.route_book import RouteBook
from services.inference.app.versions import Versions
from services.inference.domain.model import Lineage, ModelVersion, VersionState
from services.inference.domain.route import MAX_ENTRIES, Cause, ModelRoute, RouteEntry
from services.kit.clock import Clock, SystemClock
from services.kit.errors import (
    AbortedError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.kit.ids import NEWEST
from services.kit.probes import Probes
from services.kit.storage.artifacts import ArtifactStore, digest_folder
from services.kit.storage.signing import SIGNATURE, SigningKey, TrustedKeys
from services.serving.app.routing import RoutingTable
from services.serving.domain.answer import Task
from services.serving.domain.cascade import Cascade
from services.serving.domain.names import ModelReference
from services.serving.domain.route import Role
from tests.conftest import OpenDatabase


@dataclass
class FakeServer:
    """Loads what the configuration in `root` says."""

    root: Path
    ready: dict[str, frozenset[int]] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    error: Exception | None = None
    away: bool = False
    asked: int = 0
    answer: str = ""
    """To every probe."""
    probes_fail: bool = False

    def load(self, model: str, number: int) -> None:
        """As Triton does: reads the configuration, and keeps what was loaded where it fails."""
        self.asked += 1
        if self.away:
            raise UnavailableError("Triton is unavailable", reason="TRITON_UNAVAILABLE")
        if self.error is not None:
            raise self.error
        config = model_config_pb2.ModelConfig()
        folder = self.root / f"{model}.{number}"
        text_format.Parse((folder / "config.pbtxt").read_text(), config)
        assert (config.name, list(config.version_policy.specific.versions)) == (folder.name, [number])
        assert (folder / str(number) / "model.py").is_file()
        self.loads.append(model)
        self.ready[model] = self.ready.get(model, frozenset()) | {number}

    def answers(self, version: ModelVersion, probes: Probes) -> Sequence[str]:
        if self.away or self.probes_fail:
            raise UnavailableError("Triton is unavailable", reason="TRITON_UNAVAILABLE")
        return [self.answer] * len(probes.texts)

    def unload(self, model: str, number: int) -> None:
        left = self.ready.pop(model, frozenset()) - {number}
        if left:
            self.ready[model] = left

    def ready_versions(self) -> Mapping[str, frozenset[int]]:
        if self.away:
            raise UnavailableError("Triton is unavailable", reason="TRITON_UNAVAILABLE")
        return self.ready


@dataclass
class FakeAnnouncer:
    """Records its calls."""

    names: list[str] = field(default_factory=list)
    routes: list[tuple[str, dict[int, int]]] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)

    def published(self, version: ModelVersion) -> None:
        self.names.append(version.name)

    def route_changed(self, route: ModelRoute, traceparent: str) -> None:
        self.routes.append((route.etag, {entry.number: entry.weight for entry in route.entries}))
        self.causes.append(route.cause)


@dataclass
class Harness:
    """All of publishing."""

    folder: Path
    engine: Engine
    server: FakeServer
    announcer: FakeAnnouncer
    book: RouteBook = field(default_factory=RouteBook)
    restarts: RestartQueue = field(default_factory=RestartQueue)
    clock: Clock = field(default_factory=SystemClock)
    artifacts: str = ""
    reconciler: Reconciler = field(init=False)
    """Of the newest `publishing`."""

    @property
    def key(self) -> SigningKey:
        """Signs builds."""
        key = SigningKey(self.folder / "keys" / "signing.pem", self.folder / "keys" / "trusted")
        key.ensure()
        return key

    @property
    def repository(self) -> TritonRepository:
        """The files that Triton reads."""
        return TritonRepository(self.root, self.folder / "staging", TrustedKeys(self.folder / "keys" / "trusted"), None)

    @property
    def table(self) -> RoutingTable:
        """The routes as a data plane has them."""
        table = RoutingTable()
        table.replace(self.book.read().by_model.values())
        return table

    def serving(self, model: str = "m") -> int:
        """The version that a data plane sends requests to."""
        return self.table.choose(ModelReference(model), "", Task.TEXT_CLASSIFICATION).number

    @property
    def root(self) -> Path:
        return self.folder / "models"

    def publishing(self, **changes: int) -> Publishing:
        """Publishing as after a start of the service."""
        parts = ServingParts(
            store=SqlModelStore(self.engine),
            builds=ArtifactBuilds(
                ArtifactStore(self.artifacts or f"file://{self.folder}"),
                TrustedKeys(self.folder / "keys" / "trusted"),
                self.folder / "cache",
            ),
            repository=self.repository,
            server=self.server,
            book=self.book,
            clock=self.clock,
        )
        keep_versions, drain_s = changes.get("keep_versions", 2), changes.get("drain_s", 0)
        versions = Versions(parts, self.restarts, drain_s=drain_s)
        self.reconciler = Reconciler(versions, self.announcer)
        return Publishing(versions, keep_versions=keep_versions)

    def restart(self) -> None:
        """Another process with its own memory takes over."""
        self.publishing()

    def build(self, name: str, **manifest: object) -> Lineage:
        """Files that look like a build, signed."""
        folder = self.folder / "builds" / name
        folder.mkdir(parents=True)
        for file in ("openvino_model.xml", "openvino_model.bin", "tokenizer.json"):
            (folder / file).write_text(f"{name} {file}")
        digest = digest_folder(folder)
        fields = {"task": "text_classification", "runtime": "openvino", "precision": "int8", "labels": ["a", "b"]}
        (folder / "tidemill.json").write_text(json.dumps(fields | manifest))
        self.key.sign(folder)
        return Lineage(f"file://{folder}", digest, "runs/r", "datasets/d/versions/1")

    def states(self, model: str = "m") -> list[tuple[int, VersionState]]:
        """Versions, newest first."""
        return [(v.number, v.state) for v in SqlModelStore(self.engine).versions(model, NEWEST, 100)]


@pytest.fixture
def harness(tmp_path: Path, open_service_database: OpenDatabase) -> Harness:
    return Harness(tmp_path, open_service_database("inference"), FakeServer(tmp_path / "models"), FakeAnnouncer())


def test_the_same_build_is_published_once(harness: Harness) -> None:
    publishing, build = harness.publishing(), harness.build("one")
    version, reused = publishing.publish("m", build)
    assert (version.number, version.state, reused) == (1, VersionState.SERVING, False)
    assert publishing.publish("m", build) == (version, True)
    assert harness.server.loads == ["m"]
    assert harness.serving() == 1


def test_a_version_is_a_folder_of_its_own_with_code_and_a_copy_of_its_weights(harness: Harness) -> None:
    harness.publishing().publish("m", harness.build("one"))
    folder = harness.root / "m.1" / "1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "build",
        "model.py",
        "tidemill-version.json",
        "tidemill_model",
    ]
    artefact = harness.folder / "builds" / "one" / "openvino_model.bin"
    assert (folder / "build" / "openvino_model.bin").read_bytes() == artefact.read_bytes()
    # A link would let who overwrites the one damage the other.
    assert not (folder / "build" / "openvino_model.bin").samefile(artefact)
    assert (folder / "build" / "openvino_model.bin").stat().st_nlink == 1
    assert "tidemill_model.classification" in (folder / "model.py").read_text()
    assert (folder / "tidemill_model" / "classification.py").is_file()
    assert not list((harness.folder / "staging").iterdir())


def test_a_build_that_embeds_needs_no_labels_but_the_width_of_its_vectors(harness: Harness) -> None:
    publishing = harness.publishing()
    with pytest.raises(InvalidArgumentError, match="must name its embedding_size"):
        publishing.publish("m", harness.build("narrow", task="text_embedding", labels=[]))
    publishing.publish("m", harness.build("one", task="text_embedding", labels=[], embedding_size=32))
    folder = harness.root / "m.1"
    assert "tidemill_model.text_embedding" in (folder / "1" / "model.py").read_text()
    assert 'name: "embedding"' in (folder / "config.pbtxt").read_text()
    assert 'name: "label"' not in (folder / "config.pbtxt").read_text()


def test_copies_of_builds_are_closed_as_the_umask_says(harness: Harness) -> None:
    """In a mesh it is 077; tests/conftest.py undoes it."""
    os.umask(0o077)
    harness.publishing().publish("m", harness.build("one"))
    copies = [path for path in (harness.root / "m.1" / "1" / "build").rglob("*") if path.is_file()]
    assert copies
    assert {path.stat().st_mode & 0o777 for path in copies} == {0o400}


def test_numbers_grow_and_the_one_before_is_retired(harness: Harness) -> None:
    publishing = harness.publishing()
    for name in ("one", "two"):
        publishing.publish("m", harness.build(name))
    assert harness.states() == [(2, VersionState.SERVING), (1, VersionState.RETIRED)]
    assert harness.server.ready == {"m": frozenset({2})}


def test_a_build_that_comes_back_keeps_its_number(harness: Harness) -> None:
    publishing, one, two = harness.publishing(), harness.build("one"), harness.build("two")
    for build in (one, two, one):
        version, reused = publishing.publish("m", build)
        assert not reused
    assert version.number == 1
    assert harness.states() == [(2, VersionState.RETIRED), (1, VersionState.SERVING)]


def test_a_refused_build_is_kept_as_failed_and_its_number_is_not_used_again(harness: Harness) -> None:
    publishing, one, two = harness.publishing(), harness.build("one"), harness.build("two")
    publishing.publish("m", one)
    harness.server.error = FailedPreconditionError("no such operator", reason="TRITON_REFUSED")
    with pytest.raises(FailedPreconditionError, match="no such operator"):
        publishing.publish("m", two)
    assert harness.states() == [(2, VersionState.FAILED), (1, VersionState.SERVING)]
    assert not (harness.root / "m.2").exists()
    assert harness.serving() == 1
    harness.server.error = None
    assert publishing.publish("m", two)[0].number == 3


PROBES = Probes(("one", "two", "three"), ("yes", "yes", "no"))


def test_a_build_that_answers_otherwise_where_it_serves_is_refused(harness: Harness) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("before"))
    harness.server.answer = "no"
    with pytest.raises(FailedPreconditionError) as refused:
        publishing.publish("m", harness.build("lost", **PROBES.written()))
    assert refused.value.reason == "ANSWERS_DIFFER"
    assert "2 of 3 probes are answered otherwise, 'one' for example by 'no' instead of 'yes'" in str(refused.value)
    assert harness.states() == [(2, VersionState.FAILED), (1, VersionState.SERVING)]
    assert harness.server.ready == {"m": frozenset({1})}
    assert not (harness.root / "m.2").exists()
    assert harness.serving() == 1
    # One word more or less is the rounding of another processor.
    harness.server.answer = " yes\n"
    assert publishing.publish("m", harness.build("same", **PROBES.written()))[0].number == 3


def test_probes_are_asked_before_the_first_answer_and_not_again(harness: Harness) -> None:
    publishing, one = harness.publishing(), harness.build("one", **PROBES.written())
    harness.server.answer, harness.server.probes_fail = "yes", True
    with pytest.raises(UnavailableError):
        publishing.publish("m", one)
    assert harness.states() == [(1, VersionState.LOADING)]
    harness.server.probes_fail = False
    assert harness.publishing().publish("m", one)[0].number == 1
    # It has served: that Triton answers slowly must not keep it from coming back.
    publishing.publish("m", harness.build("two"))
    harness.server.probes_fail = True
    assert publishing.roll_back("m").number == 1


@pytest.mark.parametrize("wrong", [{"texts": []}, {"texts": ["a"], "answers": [], "max_tokens": 8}, ["a"], 3])
def test_damaged_probes_are_refused(harness: Harness, wrong: object) -> None:
    with pytest.raises(InvalidArgumentError, match="versions/1: its probes "):
        harness.publishing().publish("m", harness.build("one", probes=wrong))
    assert harness.states() == [(1, VersionState.FAILED)]


def test_a_publication_that_was_cut_off_is_taken_up_under_its_number(harness: Harness) -> None:
    publishing, one, two = harness.publishing(), harness.build("one"), harness.build("two")
    publishing.publish("m", one)
    harness.server.away = True
    with pytest.raises(UnavailableError):
        publishing.publish("m", two)
    assert harness.states() == [(2, VersionState.LOADING), (1, VersionState.SERVING)]
    harness.server.away = False
    # Triton loads the new version after the caller had given up: what is to serve is what the store says.
    harness.server.ready["m"] = frozenset({1, 2})
    harness.restart()
    harness.reconciler.reconcile()
    assert harness.server.ready["m"] == frozenset({1})
    version, reused = harness.publishing().publish("m", two)
    assert (version.number, reused) == (2, False)


def test_a_cut_off_publication_leaves_nothing_once_another_took_its_place(harness: Harness) -> None:
    publishing, one, two = harness.publishing(), harness.build("one"), harness.build("two")
    harness.server.away = True
    with pytest.raises(UnavailableError):
        publishing.publish("m", one)
    assert (harness.root / "m.1" / "1").is_dir()
    harness.server.away = False
    publishing.publish("m", two)
    assert harness.states() == [(2, VersionState.SERVING), (1, VersionState.FAILED)]
    assert not (harness.root / "m.1" / "1").exists()
    assert publishing.publish("m", one)[0].number == 3


def test_a_late_repeat_of_a_publication_does_not_undo_what_came_after_it(harness: Harness) -> None:
    publishing, one, two = harness.publishing(), harness.build("one"), harness.build("two")
    first, _ = publishing.publish("m", one, "r1")
    publishing.publish("m", two, "r2")
    assert publishing.publish("m", one, "r1")[0].number == first.number
    assert harness.states() == [(2, VersionState.SERVING), (1, VersionState.RETIRED)]
    # A request of its own may bring the build back.
    assert publishing.publish("m", one, "r3")[0].state is VersionState.SERVING


def test_a_copy_of_a_remote_build_goes_when_it_has_been_placed(harness: Harness) -> None:
    remote = fsspec.filesystem("memory")
    harness.artifacts = "memory://artefacts"

    def build(name: str) -> Lineage:
        local = harness.build(name)
        remote.put(f"{harness.folder}/builds/{name}", f"/artefacts/{name}", recursive=True)
        return replace(local, artifact_uri=f"memory://artefacts/{name}")

    publishing, one = harness.publishing(keep_versions=2), build("one")
    publishing.publish("m", one)
    assert not list((harness.folder / "cache").iterdir())
    # What is in its place needs no second copy, and one that is gone comes again.
    publishing.publish("m", build("two"))
    remote.rm("/artefacts/one", recursive=True)
    assert publishing.publish("m", one)[0].number == 1
    publishing.publish("m", build("three"))
    publishing.publish("m", build("four"))
    with pytest.raises(NotFoundError, match="memory://artefacts/one does not exist"):
        publishing.roll_back("m", 1)
    assert harness.states()[0] == (4, VersionState.SERVING)
    assert harness.server.ready == {"m": frozenset({4})}


class ManualClock(SystemClock):
    """A clock whose seconds pass when the test says so."""

    seconds = 0.0

    def monotonic(self) -> float:
        """The test's time."""
        return self.seconds


def test_a_model_that_cannot_be_loaded_is_retried_after_growing_pauses(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.clock = clock = ManualClock()
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    harness.server.ready, harness.server.asked = {}, 0
    harness.server.error = FailedPreconditionError("out of memory", reason="TRITON_REFUSED")
    for _ in range(300):
        harness.reconciler.reconcile()
        clock.seconds += 1
    assert 6 <= harness.server.asked <= 12
    assert len([r for r in caplog.records if "out of memory" in r.message]) == harness.server.asked
    harness.server.error = None
    clock.seconds += 60
    harness.reconciler.reconcile()
    assert harness.server.ready == {"m": frozenset({1})}


def test_a_full_disk_is_reported_and_the_publication_continues_when_there_is_room(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing, one, two = harness.publishing(), harness.build("one"), harness.build("two")
    publishing.publish("m", one)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        patch.setattr("fcntl.ioctl", full)
        with pytest.raises(ResourceExhaustedError, match="full"):
            publishing.publish("m", two)
    assert harness.states() == [(2, VersionState.LOADING), (1, VersionState.SERVING)]
    assert harness.server.ready == {"m": frozenset({1})}
    assert publishing.publish("m", two)[0].number == 2


def test_a_marker_that_was_cut_off_counts_as_no_version(harness: Harness) -> None:
    publishing = harness.publishing()
    version, _ = publishing.publish("m", harness.build("one"))
    (harness.root / "m.1" / "1" / "tidemill-version.json").write_text("")
    harness.server.ready = {}
    harness.reconciler.reconcile()
    assert harness.server.ready == {"m": frozenset({1})}
    assert harness.repository.holds(version)


def test_models_are_read_with_their_versions_in_one_query(harness: Harness) -> None:
    publishing = harness.publishing()
    for name in ("a", "b", "c"):
        publishing.publish(name, harness.build(name))
    publishing.unpublish("b")
    statements: list[str] = []
    event.listen(harness.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    found = publishing.list("", 10)
    assert [(m.name, m.serving.name if m.serving else None) for m in found] == [
        ("a", "models/a/versions/1"),
        ("b", None),
        ("c", "models/c/versions/1"),
    ]
    assert len([s for s in statements if s.startswith("SELECT")]) == 1


def test_a_start_brings_back_what_served(harness: Harness) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    publishing.publish("gone", harness.build("two"))
    publishing.unpublish("gone")
    harness.server.ready = {"gone": frozenset({1}), "foreign": frozenset({4})}
    harness.book = RouteBook()
    harness.restart()
    harness.reconciler.fill_book()
    harness.reconciler.reconcile()
    assert harness.server.ready == {"m": frozenset({1}), "foreign": frozenset({4})}
    assert harness.serving() == 1
    with pytest.raises(NotFoundError):
        harness.serving("gone")


def test_a_model_whose_process_died_is_loaded_again_once(harness: Harness) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    publishing.publish("other", harness.build("two"))
    harness.server.loads.clear()
    harness.restarts.add("m", 1)
    harness.server.away = True
    with pytest.raises(UnavailableError):
        harness.reconciler.reconcile()
    harness.server.away = False
    harness.reconciler.reconcile()
    harness.reconciler.reconcile()
    assert harness.server.loads == ["m"]


def test_what_callers_ask_for_first_is_loaded_first_after_a_restart_of_the_server(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing, names = harness.publishing(), ("a", "b", "c", "d", "e")
    for name in names:
        publishing.publish(name, harness.build(name))
    harness.server.loads.clear()
    harness.server.ready = {}
    generation = {name: harness.table.generation(f"{name}.1") for name in names}
    for name in ("d", "b", "d"):
        assert harness.reconciler.report_failure(name, generation[name], 1)
    load = harness.server.load

    def asked_meanwhile(model: str, number: int) -> None:
        load(model, number)
        if model == "d":
            # Its callers ask until they know that it is there, and those of another one begin to ask.
            harness.reconciler.report_failure("d", generation["d"], 1)
            harness.reconciler.report_failure("e", generation["e"], 1)

    monkeypatch.setattr(harness.server, "load", asked_meanwhile)
    harness.reconciler.reconcile()
    assert harness.server.loads == ["d", "b", "e", "a", "c"]
    harness.reconciler.reconcile()
    assert len(harness.server.loads) == 5


def test_the_routes_say_how_long_a_load_takes(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.clock = clock = ManualClock()
    load = harness.server.load

    def slow(model: str, number: int) -> None:
        clock.seconds += 20
        load(model, number)

    monkeypatch.setattr(harness.server, "load", slow)
    harness.publishing().publish("m", harness.build("one"))
    (version,) = harness.book.read().by_model["m"].versions
    assert version.load_s == 20


def test_what_was_reported_and_not_reached_stays_reported(harness: Harness) -> None:
    publishing = harness.publishing()
    for name in ("a", "b"):
        publishing.publish(name, harness.build(name))
    harness.server.loads.clear()
    for name in ("b", "a"):
        harness.restarts.add(name, 1)
    load, failed = harness.server.load, list[str]()

    def away_once(model: str, number: int) -> None:
        if not failed:
            failed.append(model)
            raise UnavailableError("Triton is unavailable", reason="TRITON_UNAVAILABLE")
        load(model, number)

    harness.server.load = away_once  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        harness.reconciler.reconcile()
    harness.reconciler.reconcile()
    assert failed == ["b"]
    assert sorted(harness.server.loads) == ["a", "b"]


def test_requests_from_before_a_load_do_not_ask_for_another_one(harness: Harness) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    harness.server.loads.clear()
    seen = harness.table.generation("m.1")
    assert harness.restarts.add("m", 1, seen)
    harness.reconciler.reconcile()
    # These waited for the process that was replaced, and end after the load that replaced it.
    for _ in range(3):
        assert not harness.restarts.add("m", 1, seen)
        harness.reconciler.reconcile()
    assert harness.server.loads == ["m"]
    # Whoever reports it may not know that the service was started again meanwhile.
    harness.restarts, harness.book = RestartQueue(), RouteBook()
    publishing = harness.publishing()
    harness.reconciler.fill_book()
    harness.reconciler.reconcile()
    assert not harness.restarts.add("m", 1, seen)
    assert harness.restarts.add("m", 1, harness.table.generation("m.1"))
    harness.reconciler.reconcile()
    assert harness.server.loads == ["m", "m"]


def test_a_load_for_another_reason_does_what_a_report_asked_for(harness: Harness) -> None:
    publishing, one, two = harness.publishing(), harness.build("one"), harness.build("two")
    publishing.publish("m", one)
    harness.restarts.add("m", 1, harness.table.generation("m.1"))
    publishing.publish("m", two)
    harness.server.loads.clear()
    harness.reconciler.reconcile()
    assert harness.server.loads == []


def test_one_model_that_cannot_be_loaded_does_not_delay_others(harness: Harness) -> None:
    publishing = harness.publishing()
    broken = harness.build("one")
    publishing.publish("a", broken)
    publishing.publish("b", harness.build("two"))
    harness.server.ready = {}
    for damaged in (harness.root / "a.1" / "1" / "build", harness.folder / "builds" / "one"):
        (damaged / "openvino_model.bin").unlink()
    harness.reconciler.reconcile()
    assert harness.server.ready == {"b": frozenset({1})}


def test_a_publication_is_reported_once_even_when_the_bus_was_unavailable(harness: Harness) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    assert harness.announcer.names == []
    harness.reconciler.reconcile()
    harness.reconciler.reconcile()
    assert harness.announcer.names == ["models/m/versions/1"]
    publishing.publish("m", harness.build("two"))
    publishing.roll_back("m")
    harness.reconciler.reconcile()
    assert harness.announcer.names[1:] == ["models/m/versions/2", "models/m/versions/1"]


def test_old_folders_go_but_a_roll_back_brings_them_again(harness: Harness) -> None:
    publishing = harness.publishing(keep_versions=2)
    for name in ("one", "two", "three", "four"):
        publishing.publish("m", harness.build(name))
    assert sorted(path.name for path in harness.root.iterdir()) == ["m.3", "m.4"]
    assert publishing.roll_back("m", 1).number == 1
    assert harness.server.ready == {"m": frozenset({1})}
    assert (harness.root / "m.1" / "1" / "build" / "openvino_model.bin").is_file()


def test_roll_back_goes_to_the_version_before_and_never_to_one_that_failed(harness: Harness) -> None:
    publishing = harness.publishing()
    with pytest.raises(NotFoundError):
        publishing.roll_back("m")
    publishing.publish("m", harness.build("one"))
    with pytest.raises(FailedPreconditionError, match="no earlier version"):
        publishing.roll_back("m")
    harness.server.error = FailedPreconditionError("refused")
    with pytest.raises(FailedPreconditionError):
        publishing.publish("m", harness.build("two"))
    harness.server.error = None
    publishing.publish("m", harness.build("three"))
    assert publishing.roll_back("m").number == 1
    with pytest.raises(FailedPreconditionError, match="never served"):
        publishing.roll_back("m", 2)
    assert publishing.roll_back("m", 3).number == 3


def test_a_repeated_roll_back_does_not_go_back_further(harness: Harness) -> None:
    publishing = harness.publishing()
    for name in ("one", "two", "three"):
        publishing.publish("m", harness.build(name))
    assert publishing.roll_back("m", request_id="r1").number == 2
    assert publishing.roll_back("m", request_id="r1").number == 2
    assert harness.server.ready == {"m": frozenset({2})}
    assert publishing.roll_back("m", request_id="r2").number == 1


def test_a_folder_left_by_a_lost_history_is_replaced(harness: Harness) -> None:
    stale = harness.root / "m.1" / "1"
    stale.mkdir(parents=True)
    (stale / "tidemill-version.json").write_text('{"digest": "of another mesh"}')
    harness.publishing().publish("m", harness.build("one"))
    assert (stale / "model.py").is_file()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"task": "poetry"}, "not usable"),
        ({"runtime": "onnxruntime"}, "made for 'onnxruntime'.*train the model again"),
        ({"labels": ["one"]}, "at least 2 labels"),
        ({"task": "generation"}, r"lacks config\.json"),
    ],
)
def test_a_build_that_cannot_be_served_is_refused_before_triton_sees_it(
    harness: Harness, manifest: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        harness.publishing().publish("m", harness.build("bad", **manifest))
    assert harness.states() == []
    assert not harness.root.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "part/weights.PT", "model.pkl"])
def test_a_build_with_pickled_weights_is_refused(harness: Harness, name: str) -> None:
    build = harness.build("pickled")
    folder = harness.folder / "builds" / "pickled"
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04.")
    harness.key.sign(folder)
    digest = digest_folder(folder, without=["tidemill.json", SIGNATURE])
    with pytest.raises(InvalidArgumentError, match=f"{name}.*can run code"):
        harness.publishing().publish("m", replace(build, digest=digest))
    assert not harness.root.exists()


def test_a_writer_streams_and_a_classifier_batches_and_caches(harness: Harness) -> None:
    build = harness.build("w", task="generation")
    folder = harness.folder / "builds" / "w"
    for file in ("config.json", "tokenizer_config.json"):
        (folder / file).write_text("{}")
    harness.key.sign(folder)
    publishing = harness.publishing()
    digest = digest_folder(folder, without=["tidemill.json", SIGNATURE])
    publishing.publish("writer", Lineage(build.artifact_uri, digest))
    publishing.publish("classifier", harness.build("c"))
    configs = {}
    for model in ("writer", "classifier"):
        configs[model] = model_config_pb2.ModelConfig()
        text_format.Parse((harness.root / f"{model}.1" / "config.pbtxt").read_text(), configs[model])
    assert configs["writer"].model_transaction_policy.decoupled
    # Triton 2.51 keeps the empty answer of a process that died, and gives it to everyone who asks the same.
    assert not any(config.response_cache.enable for config in configs.values())
    assert configs["classifier"].HasField("dynamic_batching")
    assert [warm.batch_size for warm in configs["classifier"].model_warmup] == [1, 8]
    assert list(configs["classifier"].output[2].dims) == [2]


def weights(harness: Harness, model: str = "m") -> dict[int, tuple[str, int]]:
    """What the data planes have: role and weight by version."""
    found = harness.table.route(model)
    return {} if found is None else {each.number: (each.role.value, each.weight) for each in found.versions}


def publish_three(harness: Harness, **changes: int) -> Publishing:
    publishing = harness.publishing(**changes)
    for name in ("one", "two", "three"):
        publishing.publish("m", harness.build(name))
    return publishing


def test_a_route_loads_its_versions_side_by_side_and_outlives_a_restart(harness: Harness) -> None:
    publishing = publish_three(harness)
    entries = [RouteEntry(3, Role.SERVING, 70), RouteEntry(1, Role.CANARY, 30), RouteEntry(2, Role.CANDIDATE)]
    now = publishing.set_route("m", entries, {"next": 2}, publishing.route("m").etag)
    assert harness.server.ready == {"m": frozenset({1, 2, 3})}
    assert harness.states() == [(number, VersionState.SERVING) for number in (3, 2, 1)]
    expected = {3: ("serving", 70), 1: ("canary", 30), 2: ("candidate", 0)}
    assert weights(harness) == expected
    users = {f"u{n}": harness.table.choose(ModelReference("m"), f"u{n}").number for n in range(100)}
    # Everything but the database is gone.
    harness.book, harness.restarts, harness.server.ready = RouteBook(), RestartQueue(), {}
    restarted = harness.publishing()
    harness.reconciler.fill_book()
    harness.reconciler.reconcile()
    assert weights(harness) == expected
    assert restarted.route("m").etag == now.etag
    assert harness.server.ready == {"m": frozenset({1, 2, 3})}
    assert {user: harness.table.choose(ModelReference("m"), user).number for user in users} == users
    assert harness.table.choose(ModelReference("m", "next")).number == 2
    assert harness.table.choose(ModelReference("m", "champion")).number == 3


def test_an_older_etag_cannot_replace_a_newer_route(harness: Harness) -> None:
    publishing = publish_three(harness)
    etag = publishing.route("m").etag
    publishing.roll_back("m")
    with pytest.raises(AbortedError) as caught:
        publishing.set_route("m", [RouteEntry(3, Role.SERVING, 1)], {}, etag)
    assert caught.value.reason == "ROUTE_CHANGED"
    assert harness.serving() == 2
    publishing.set_route("m", [RouteEntry(3, Role.SERVING, 1)], {}, "*")
    assert harness.serving() == 3


def test_a_promoted_version_takes_weight_and_users_of_the_one_before(harness: Harness) -> None:
    publishing = publish_three(harness)
    entries = [RouteEntry(3, Role.SERVING, 60), RouteEntry(1, Role.CANARY, 20), RouteEntry(2, Role.CANARY, 20)]
    publishing.set_route("m", entries, {"stable": 3}, "*")
    users = {f"u{n}": harness.table.choose(ModelReference("m"), f"u{n}").number for n in range(200)}
    cause = Cause("PromoteVersion", "key_1", "it is better")
    promoted = publishing.promote("m", 1, request_id="p1", cause=cause)
    assert weights(harness) == {1: ("serving", 80), 2: ("canary", 20), 3: ("candidate", 0)}
    assert {u: harness.table.choose(ModelReference("m"), u).number for u in users} == {
        user: 1 if number == 3 else number for user, number in users.items()
    }
    harness.reconciler.reconcile()
    assert harness.announcer.causes[-1] == cause
    # Neither a version that serves, nor a late repeat after something else was promoted, changes the route.
    assert publishing.promote("m", 1).etag == promoted.etag
    publishing.promote("m", 2)
    assert publishing.promote("m", 1, request_id="p1").versions[0].number == 2


def test_only_a_version_of_the_route_that_was_meant_is_promoted(harness: Harness) -> None:
    publishing = publish_three(harness)
    before = publishing.route("m")
    with pytest.raises(FailedPreconditionError, match="not in the route of models/m, which has 3") as caught:
        publishing.promote("m", 2)
    assert caught.value.reason == "NOT_IN_ROUTE"
    publishing.set_route("m", [RouteEntry(3, Role.SERVING, 60), RouteEntry(2, Role.CANARY, 20)], {}, "*")
    with pytest.raises(AbortedError, match="was changed meanwhile"):
        publishing.promote("m", 2, before.etag)
    assert weights(harness) == {3: ("serving", 60), 2: ("canary", 20)}
    assert publishing.promote("m", 2, publishing.route("m").etag).versions[0].number == 2


def test_a_cascade_outlives_changes_of_versions_and_restarts(harness: Harness) -> None:
    publishing = publish_three(harness)
    publishing.publish("large", harness.build("large"))
    before, cascade = publishing.route("m"), Cascade("large", 0.9, 1.5)
    cause = Cause("SetCascade", "key_1", "cheaper")
    now = publishing.set_cascade("m", cascade, before.etag, cause=cause)
    assert (now.cascade, now.versions) == (cascade, before.versions)
    harness.reconciler.reconcile()
    assert harness.announcer.causes[-1] == cause
    assert publishing.set_cascade("m", cascade).etag == now.etag
    with pytest.raises(AbortedError, match="was changed meanwhile"):
        publishing.set_cascade("m", None, before.etag)
    publishing.set_route("m", [RouteEntry(3, Role.SERVING, 1), RouteEntry(2, Role.CANARY, 1)], {}, "*")
    publishing.promote("m", 2)
    publishing.roll_back("m", 1)
    harness.restart()
    again = harness.publishing()
    assert again.route("m").cascade == cascade
    assert harness.table.route("m") is not None
    assert again.set_cascade("m", None).cascade is None


@pytest.mark.parametrize(
    ("larger", "manifest", "message"),
    [
        ("m", {}, "it is the same model"),
        ("other", {"labels": ["a", "c"]}, "its labels are a, c, and not a, b"),
        ("gone", {}, "must be a classifier of texts that serves"),
    ],
)
def test_a_larger_model_that_cannot_stand_in_is_refused(
    harness: Harness, larger: str, manifest: dict[str, object], message: str
) -> None:
    publishing = publish_three(harness)
    if larger != "m":
        publishing.publish(larger, harness.build(f"{larger}-build", **manifest))
    if larger == "gone":
        publishing.unpublish(larger)
    with pytest.raises(FailedPreconditionError, match=message) as found:
        publishing.set_cascade("m", Cascade(larger, 0.9))
    assert (found.value.reason, found.value.violations[0].field) == ("NO_CASCADE", "cascade.model")
    with pytest.raises(NotFoundError) as missing:
        publishing.set_cascade("m", Cascade("never", 0.9))
    assert missing.value.violations[0].field == "cascade.model"
    with pytest.raises(NotFoundError):
        publishing.set_cascade("never", None)


def test_two_services_cannot_write_the_same_revision(harness: Harness) -> None:
    publishing = publish_three(harness)
    store = SqlModelStore(harness.engine)
    found = store.model("m")
    assert found is not None
    publishing.roll_back("m")
    with pytest.raises(AbortedError):
        store.set_route(found.route.without(3), SystemClock().now())


def test_a_route_whose_version_cannot_be_loaded_changes_nothing(harness: Harness) -> None:
    publishing = publish_three(harness, keep_versions=2)
    shutil.rmtree(harness.folder / "builds" / "one")
    before, serving = publishing.route("m"), RouteEntry(3, Role.SERVING, 50)
    with pytest.raises(NotFoundError) as caught:
        publishing.set_route("m", [serving, RouteEntry(1, Role.CANARY, 50)], {}, "*")
    assert [violation.field for violation in caught.value.violations] == ["entries[1].version"]
    harness.server.error = FailedPreconditionError("no such operator", reason="TRITON_REFUSED")
    with pytest.raises(FailedPreconditionError, match="no such operator"):
        publishing.set_route("m", [serving, RouteEntry(2, Role.CANARY, 50)], {}, "*")
    harness.server.error = None
    with pytest.raises(NotFoundError, match="no model version 'models/m/versions/9'"):
        publishing.set_route("m", [serving, RouteEntry(9, Role.CANARY, 50)], {}, "*")
    assert publishing.route("m") == before
    harness.reconciler.reconcile()
    assert harness.server.ready == {"m": frozenset({3})}
    assert harness.announcer.routes[-1] == (before.etag, {3: 100})


def test_a_version_that_left_its_route_is_unloaded_after_its_time(harness: Harness) -> None:
    harness.clock = clock = ManualClock()
    publishing = harness.publishing(drain_s=5)
    publishing.publish("m", harness.build("one"))
    publishing.publish("m", harness.build("two"))
    assert harness.server.ready == {"m": frozenset({1, 2})}
    clock.seconds += 4
    harness.reconciler.reconcile()
    assert harness.server.ready == {"m": frozenset({1, 2})}
    # Going back within its time needs no load, and begins it again for the other.
    harness.server.loads.clear()
    assert publishing.roll_back("m").number == 1
    assert harness.server.loads == []
    clock.seconds += 2
    harness.reconciler.reconcile()
    assert harness.server.ready == {"m": frozenset({1, 2})}
    clock.seconds += 4
    harness.reconciler.reconcile()
    assert harness.server.ready == {"m": frozenset({1})}


def test_a_build_is_published_beside_the_serving_one(harness: Harness) -> None:
    publishing = harness.publishing()
    with pytest.raises(FailedPreconditionError, match="no serving version"):
        publishing.publish("m", harness.build("early"), role=Role.CANDIDATE)
    publishing.publish("m", harness.build("one"))
    two = harness.build("two")
    canary, reused = publishing.publish("m", two, role=Role.CANARY, weight=25)
    assert not reused
    assert weights(harness) == {1: ("serving", 100), canary.number: ("canary", 25)}
    assert publishing.publish("m", two, role=Role.CANARY, weight=25) == (canary, True)
    with pytest.raises(InvalidArgumentError, match="weight of at least 1"):
        publishing.publish("m", harness.build("three"), role=Role.CANARY)
    # It never served, so nothing rolls back to it; its publication makes it serve.
    with pytest.raises(FailedPreconditionError, match="no earlier version"):
        publishing.roll_back("m")
    publishing.publish("m", two)
    assert weights(harness) == {canary.number: ("serving", 125)}
    assert publishing.roll_back("m").number == 1


def test_a_build_is_not_published_into_a_full_route(harness: Harness) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("0"))
    for number in range(1, MAX_ENTRIES):
        publishing.publish("m", harness.build(str(number)), role=Role.CANDIDATE)
    loads = list(harness.server.loads)
    with pytest.raises(FailedPreconditionError, match="is full: it can have 8 versions") as caught:
        publishing.publish("m", harness.build("one too many"), role=Role.CANDIDATE)
    assert caught.value.reason == "ROUTE_FULL"
    assert harness.server.loads == loads
    assert harness.states()[0][1] is VersionState.FAILED
    # A version that takes the serving one's place needs no further place.
    publishing.publish("m", harness.build("next"))
    assert len(publishing.get("m").route.entries) == MAX_ENTRIES


def test_a_canary_whose_files_are_lost_leaves_the_route_and_its_users_go_to_the_others(harness: Harness) -> None:
    publishing = publish_three(harness)
    publishing.set_route("m", [RouteEntry(3, Role.SERVING, 50), RouteEntry(2, Role.CANARY, 50)], {}, "*")
    for damaged in (harness.root / "m.2" / "2" / "build", harness.folder / "builds" / "two"):
        (damaged / "openvino_model.bin").unlink()
    harness.reconciler.reconcile()
    assert weights(harness) == {3: ("serving", 50)}
    assert harness.states()[1] == (2, VersionState.FAILED)
    assert {harness.table.choose(ModelReference("m"), f"u{n}").number for n in range(50)} == {3}


def test_each_change_of_a_route_is_reported_in_order_even_when_the_bus_was_unavailable(harness: Harness) -> None:
    publishing = publish_three(harness)
    publishing.set_route("m", [RouteEntry(3, Role.SERVING, 70), RouteEntry(1, Role.CANARY, 30)], {}, "*")
    publishing.unpublish("m")
    harness.reconciler.reconcile()
    harness.reconciler.reconcile()
    expected = [("1", {1: 100}), ("2", {2: 100}), ("3", {3: 100}), ("4", {3: 70, 1: 30}), ("5", {})]
    assert harness.announcer.routes == expected


def test_a_dead_version_is_loaded_alone(harness: Harness) -> None:
    publishing = publish_three(harness)
    publishing.set_route("m", [RouteEntry(3, Role.SERVING, 50), RouteEntry(2, Role.CANARY, 50)], {}, "*")
    before = {number: harness.table.generation(f"m.{number}") for number in (2, 3)}
    assert harness.reconciler.report_failure("m", before[2], 2)
    harness.reconciler.reconcile()
    assert {number: harness.table.generation(f"m.{number}") for number in (2, 3)} == {2: before[2] + 1, 3: before[3]}


def test_a_folder_of_a_release_that_kept_all_versions_in_one_is_taken_over(harness: Harness) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    (harness.root / "m").mkdir()
    (harness.root / "m.1" / "1").rename(harness.root / "m" / "1")
    shutil.rmtree(harness.folder / "builds" / "one")
    harness.server.ready = {}
    harness.reconciler.reconcile()
    assert harness.server.ready == {"m": frozenset({1})}
    assert not (harness.root / "m" / "1").exists()
