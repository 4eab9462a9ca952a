"""Publishing on a real database and real folders, with a server that does what the test wants."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
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
from services.inference.app.publishing import NEWEST, Publishing
from services.inference.app.serving import ServingTable, Suspects
from services.inference.domain.model import Lineage, ModelVersion, Task, VersionState
from services.kit.clock import Clock, SystemClock
from services.kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.kit.storage.artifacts import ArtifactStore, digest_folder
from services.kit.storage.signing import SIGNATURE, SigningKey, TrustedKeys
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

    def load(self, model: str) -> None:
        """As Triton does: reads the configuration, and keeps what served where it fails."""
        self.asked += 1
        if self.away:
            raise UnavailableError("Triton is away", reason="TRITON_UNAVAILABLE")
        if self.error is not None:
            raise self.error
        config = model_config_pb2.ModelConfig()
        text_format.Parse((self.root / model / "config.pbtxt").read_text(), config)
        versions = frozenset(config.version_policy.specific.versions)
        assert all((self.root / model / str(number) / "model.py").is_file() for number in versions)
        self.loads.append(model)
        self.ready[model] = versions

    def unload(self, model: str) -> None:
        """At once."""
        self.ready.pop(model, None)

    def ready_versions(self) -> Mapping[str, frozenset[int]]:
        """What was loaded."""
        if self.away:
            raise UnavailableError("Triton is away", reason="TRITON_UNAVAILABLE")
        return self.ready


@dataclass
class FakeAnnouncer:
    """Notes what it is told."""

    told: list[str] = field(default_factory=list)

    def published(self, version: ModelVersion) -> None:
        """Notes it."""
        self.told.append(version.name)


@dataclass
class House:
    """All of publishing."""

    folder: Path
    engine: Engine
    server: FakeServer
    announcer: FakeAnnouncer
    table: ServingTable = field(default_factory=ServingTable)
    suspects: Suspects = field(default_factory=Suspects)
    clock: Clock = field(default_factory=SystemClock)
    artifacts: str = ""

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
    def root(self) -> Path:
        """The repository."""
        return self.folder / "models"

    def publishing(self, **changes: int) -> Publishing:
        """As after a start of the service."""
        return Publishing(
            store=SqlModelStore(self.engine),
            builds=ArtifactBuilds(
                ArtifactStore(self.artifacts or f"file://{self.folder}"),
                TrustedKeys(self.folder / "keys" / "trusted"),
                self.folder / "cache",
            ),
            repository=self.repository,
            server=self.server,
            announcer=self.announcer,
            table=self.table,
            suspects=self.suspects,
            clock=self.clock,
            keep_versions=changes.get("keep_versions", 2),
        )

    def build(self, name: str, **manifest: object) -> Lineage:
        """A build that looks like one."""
        folder = self.folder / "builds" / name
        folder.mkdir(parents=True)
        for file in ("model.onnx", "tokenizer.json"):
            (folder / file).write_text(f"{name} {file}")
        digest = digest_folder(folder)
        fields = {"task": "text_classification", "runtime": "onnxruntime", "precision": "int8", "labels": ["a", "b"]}
        (folder / "tidemill.json").write_text(json.dumps(fields | manifest))
        self.key.sign(folder)
        return Lineage(f"file://{folder}", digest, "runs/r", "datasets/d/versions/1")

    def states(self, model: str = "m") -> list[tuple[int, VersionState]]:
        """Versions, newest first."""
        return [(v.number, v.state) for v in SqlModelStore(self.engine).versions(model, NEWEST, 100)]


@pytest.fixture
def house(tmp_path: Path, open_service_database: OpenDatabase) -> House:
    return House(tmp_path, open_service_database("inference"), FakeServer(tmp_path / "models"), FakeAnnouncer())


def test_the_same_build_is_published_once(house: House) -> None:
    publishing, build = house.publishing(), house.build("one")
    version, reused = publishing.publish("m", build)
    assert (version.number, version.state, reused) == (1, VersionState.SERVING, False)
    assert publishing.publish("m", build) == (version, True)
    assert house.server.loads == ["m"]
    assert house.table.require("m", Task.TEXT_CLASSIFICATION).number == 1


def test_a_version_is_a_folder_of_its_own_with_code_and_a_copy_of_its_weights(house: House) -> None:
    house.publishing().publish("m", house.build("one"))
    folder = house.root / "m" / "1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "build",
        "model.py",
        "tidemill-version.json",
        "tidemill_model",
    ]
    artefact = house.folder / "builds" / "one" / "model.onnx"
    assert (folder / "build" / "model.onnx").read_bytes() == artefact.read_bytes()
    # A link would let who overwrites the one damage the other.
    assert not (folder / "build" / "model.onnx").samefile(artefact)
    assert (folder / "build" / "model.onnx").stat().st_nlink == 1
    assert "tidemill_model.classification" in (folder / "model.py").read_text()
    assert (folder / "tidemill_model" / "classification.py").is_file()
    assert not list((house.folder / "staging").iterdir())


def test_numbers_grow_and_the_one_before_is_retired(house: House) -> None:
    publishing = house.publishing()
    for name in ("one", "two"):
        publishing.publish("m", house.build(name))
    assert house.states() == [(2, VersionState.SERVING), (1, VersionState.RETIRED)]
    assert house.server.ready == {"m": frozenset({2})}


def test_a_build_that_comes_back_keeps_its_number(house: House) -> None:
    publishing, one, two = house.publishing(), house.build("one"), house.build("two")
    for build in (one, two, one):
        version, reused = publishing.publish("m", build)
        assert not reused
    assert version.number == 1
    assert house.states() == [(2, VersionState.RETIRED), (1, VersionState.SERVING)]


def test_a_refused_build_is_kept_as_failed_and_its_number_is_not_used_again(house: House) -> None:
    publishing, one, two = house.publishing(), house.build("one"), house.build("two")
    publishing.publish("m", one)
    house.server.error = FailedPreconditionError("no such operator", reason="TRITON_REFUSED")
    with pytest.raises(FailedPreconditionError, match="no such operator"):
        publishing.publish("m", two)
    assert house.states() == [(2, VersionState.FAILED), (1, VersionState.SERVING)]
    assert not (house.root / "m" / "2").exists()
    assert "versions: 1" in (house.root / "m" / "config.pbtxt").read_text()
    assert house.table.require("m", Task.TEXT_CLASSIFICATION).number == 1
    house.server.error = None
    assert publishing.publish("m", two)[0].number == 3


def test_a_publication_that_was_cut_off_is_taken_up_under_its_number(house: House) -> None:
    publishing, one, two = house.publishing(), house.build("one"), house.build("two")
    publishing.publish("m", one)
    house.server.away = True
    with pytest.raises(UnavailableError):
        publishing.publish("m", two)
    assert house.states() == [(2, VersionState.LOADING), (1, VersionState.SERVING)]
    house.server.away = False
    # Triton loads the new version after the caller had given up: what is to serve is what the store says.
    house.server.ready["m"] = frozenset({2})
    house.publishing().reconcile()
    assert house.server.ready["m"] == frozenset({1})
    version, reused = house.publishing().publish("m", two)
    assert (version.number, reused) == (2, False)


def test_a_cut_off_publication_leaves_nothing_once_another_took_its_place(house: House) -> None:
    publishing, one, two = house.publishing(), house.build("one"), house.build("two")
    house.server.away = True
    with pytest.raises(UnavailableError):
        publishing.publish("m", one)
    assert (house.root / "m" / "1").is_dir()
    house.server.away = False
    publishing.publish("m", two)
    assert house.states() == [(2, VersionState.SERVING), (1, VersionState.FAILED)]
    assert not (house.root / "m" / "1").exists()
    assert publishing.publish("m", one)[0].number == 3


def test_what_triton_loaded_before_a_kill_is_understood_until_it_is_put_right(house: House) -> None:
    publishing, one, two = house.publishing(), house.build("one"), house.build("two", labels=["c", "d"])
    publishing.publish("m", one)
    house.server.away = True
    with pytest.raises(UnavailableError):
        publishing.publish("m", two)
    # Killed here: Triton goes on with the load, and the next start knows of it only from the store.
    house.table = ServingTable()
    house.publishing().fill_table()
    assert house.table.require("m", Task.TEXT_CLASSIFICATION).number == 1
    assert house.table.labels("m", 2) == ("c", "d")


def test_a_late_repeat_of_a_publication_does_not_undo_what_came_after_it(house: House) -> None:
    publishing, one, two = house.publishing(), house.build("one"), house.build("two")
    first, _ = publishing.publish("m", one, "r1")
    publishing.publish("m", two, "r2")
    assert publishing.publish("m", one, "r1")[0].number == first.number
    assert house.states() == [(2, VersionState.SERVING), (1, VersionState.RETIRED)]
    # A request of its own may bring the build back.
    assert publishing.publish("m", one, "r3")[0].state is VersionState.SERVING


def test_a_copy_of_a_remote_build_goes_when_it_has_been_placed(house: House) -> None:
    remote = fsspec.filesystem("memory")
    house.artifacts = "memory://artefacts"

    def build(name: str) -> Lineage:
        local = house.build(name)
        remote.put(f"{house.folder}/builds/{name}", f"/artefacts/{name}", recursive=True)
        return replace(local, artifact_uri=f"memory://artefacts/{name}")

    publishing, one = house.publishing(keep_versions=2), build("one")
    publishing.publish("m", one)
    assert not list((house.folder / "cache").iterdir())
    # What is in its place needs no second copy, and one that is gone comes again.
    publishing.publish("m", build("two"))
    remote.rm("/artefacts/one", recursive=True)
    assert publishing.publish("m", one)[0].number == 1
    publishing.publish("m", build("three"))
    publishing.publish("m", build("four"))
    with pytest.raises(NotFoundError, match="memory://artefacts/one does not exist"):
        publishing.roll_back("m", 1)
    assert house.states()[0] == (4, VersionState.SERVING)
    assert house.server.ready == {"m": frozenset({4})}
    assert "versions: 4" in (house.root / "m" / "config.pbtxt").read_text()


class Ticking(SystemClock):
    """Its seconds pass when the test says so."""

    seconds = 0.0

    def monotonic(self) -> float:
        """The test's time."""
        return self.seconds


def test_a_model_that_cannot_be_loaded_is_tried_again_ever_more_seldom(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.clock = clock = Ticking()
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    house.server.ready, house.server.asked = {}, 0
    house.server.error = FailedPreconditionError("out of memory", reason="TRITON_REFUSED")
    for _ in range(300):
        publishing.reconcile()
        clock.seconds += 1
    assert 6 <= house.server.asked <= 12
    assert len([r for r in caplog.records if "out of memory" in r.message]) == house.server.asked
    house.server.error = None
    clock.seconds += 60
    publishing.reconcile()
    assert house.server.ready == {"m": frozenset({1})}


def test_a_full_disk_is_told_and_the_publication_goes_on_when_there_is_room(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing, one, two = house.publishing(), house.build("one"), house.build("two")
    publishing.publish("m", one)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        patch.setattr("fcntl.ioctl", full)
        with pytest.raises(ResourceExhaustedError, match="full"):
            publishing.publish("m", two)
    assert house.states() == [(2, VersionState.LOADING), (1, VersionState.SERVING)]
    assert house.server.ready == {"m": frozenset({1})}
    assert publishing.publish("m", two)[0].number == 2


def test_a_marker_that_was_cut_off_counts_as_no_version(house: House) -> None:
    publishing = house.publishing()
    version, _ = publishing.publish("m", house.build("one"))
    (house.root / "m" / "1" / "tidemill-version.json").write_text("")
    house.server.ready = {}
    publishing.reconcile()
    assert house.server.ready == {"m": frozenset({1})}
    assert house.repository.holds(version)


def test_models_are_read_with_their_versions_in_one_query(house: House) -> None:
    publishing = house.publishing()
    for name in ("a", "b", "c"):
        publishing.publish(name, house.build(name))
    publishing.unpublish("b")
    statements: list[str] = []
    event.listen(house.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    found = publishing.list("", 10)
    assert [(m.name, m.serving.name if m.serving else None) for m in found] == [
        ("a", "models/a/versions/1"),
        ("b", None),
        ("c", "models/c/versions/1"),
    ]
    assert len([s for s in statements if s.startswith("SELECT")]) == 1


def test_a_start_brings_back_what_served(house: House) -> None:
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    publishing.publish("gone", house.build("two"))
    publishing.unpublish("gone")
    house.server.ready = {"gone": frozenset({1}), "foreign": frozenset({4})}
    house.table = ServingTable()
    restarted = house.publishing()
    restarted.fill_table()
    restarted.reconcile()
    assert house.server.ready == {"m": frozenset({1}), "foreign": frozenset({4})}
    assert house.table.require("m", Task.TEXT_CLASSIFICATION).number == 1
    with pytest.raises(NotFoundError):
        house.table.require("gone", Task.TEXT_CLASSIFICATION)


def test_a_model_whose_process_died_is_loaded_anew_once(house: House) -> None:
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    publishing.publish("other", house.build("two"))
    house.server.loads.clear()
    house.suspects.add("m")
    house.server.away = True
    with pytest.raises(UnavailableError):
        publishing.reconcile()
    house.server.away = False
    publishing.reconcile()
    publishing.reconcile()
    assert house.server.loads == ["m"]


def test_one_model_that_cannot_be_loaded_does_not_hold_up_the_others(house: House) -> None:
    publishing = house.publishing()
    broken = house.build("one")
    publishing.publish("a", broken)
    publishing.publish("b", house.build("two"))
    house.server.ready = {}
    for damaged in (house.root / "a" / "1" / "build", house.folder / "builds" / "one"):
        (damaged / "model.onnx").unlink()
    publishing.reconcile()
    assert house.server.ready == {"b": frozenset({1})}


def test_a_publication_is_told_once_even_when_the_bus_was_away(house: House) -> None:
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    assert house.announcer.told == []
    publishing.reconcile()
    publishing.reconcile()
    assert house.announcer.told == ["models/m/versions/1"]
    publishing.publish("m", house.build("two"))
    publishing.roll_back("m")
    publishing.reconcile()
    assert house.announcer.told[1:] == ["models/m/versions/2", "models/m/versions/1"]


def test_old_folders_go_but_a_roll_back_brings_them_again(house: House) -> None:
    publishing = house.publishing(keep_versions=2)
    for name in ("one", "two", "three", "four"):
        publishing.publish("m", house.build(name))
    assert sorted(path.name for path in (house.root / "m").iterdir()) == ["3", "4", "config.pbtxt"]
    assert publishing.roll_back("m", 1).number == 1
    assert house.server.ready == {"m": frozenset({1})}
    assert (house.root / "m" / "1" / "build" / "model.onnx").is_file()


def test_roll_back_goes_to_the_version_before_and_never_to_one_that_failed(house: House) -> None:
    publishing = house.publishing()
    with pytest.raises(NotFoundError):
        publishing.roll_back("m")
    publishing.publish("m", house.build("one"))
    with pytest.raises(FailedPreconditionError, match="no earlier version"):
        publishing.roll_back("m")
    house.server.error = FailedPreconditionError("refused")
    with pytest.raises(FailedPreconditionError):
        publishing.publish("m", house.build("two"))
    house.server.error = None
    publishing.publish("m", house.build("three"))
    assert publishing.roll_back("m").number == 1
    with pytest.raises(FailedPreconditionError, match="never served"):
        publishing.roll_back("m", 2)
    assert publishing.roll_back("m", 3).number == 3


def test_a_repeated_roll_back_does_not_go_back_further(house: House) -> None:
    publishing = house.publishing()
    for name in ("one", "two", "three"):
        publishing.publish("m", house.build(name))
    assert publishing.roll_back("m", request_id="r1").number == 2
    assert publishing.roll_back("m", request_id="r1").number == 2
    assert house.server.ready == {"m": frozenset({2})}
    assert publishing.roll_back("m", request_id="r2").number == 1


def test_a_folder_left_by_a_lost_history_is_replaced(house: House) -> None:
    stale = house.root / "m" / "1"
    stale.mkdir(parents=True)
    (stale / "tidemill-version.json").write_text('{"digest": "of another mesh"}')
    house.publishing().publish("m", house.build("one"))
    assert (stale / "model.py").is_file()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"task": "poetry"}, "not usable"),
        ({"runtime": "torch"}, "runs in onnxruntime"),
        ({"labels": ["one"]}, "at least 2 labels"),
        ({"task": "generation", "runtime": "onnxruntime-genai"}, r"lacks genai_config\.json"),
    ],
)
def test_a_build_that_cannot_be_served_is_refused_before_triton_sees_it(
    house: House, manifest: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        house.publishing().publish("m", house.build("bad", **manifest))
    assert house.states() == []
    assert not house.root.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "part/weights.PT", "model.pkl"])
def test_a_build_with_pickled_weights_is_refused(house: House, name: str) -> None:
    build = house.build("pickled")
    folder = house.folder / "builds" / "pickled"
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04.")
    house.key.sign(folder)
    digest = digest_folder(folder, without=["tidemill.json", SIGNATURE])
    with pytest.raises(InvalidArgumentError, match=f"{name}.*can run code"):
        house.publishing().publish("m", replace(build, digest=digest))
    assert not house.root.exists()


def test_a_writer_streams_and_a_classifier_batches_and_caches(house: House) -> None:
    build = house.build("w", task="generation", runtime="onnxruntime-genai")
    folder = house.folder / "builds" / "w"
    for file in ("genai_config.json", "tokenizer_config.json"):
        (folder / file).write_text("{}")
    house.key.sign(folder)
    publishing = house.publishing()
    digest = digest_folder(folder, without=["tidemill.json", SIGNATURE])
    publishing.publish("writer", Lineage(build.artifact_uri, digest))
    publishing.publish("classifier", house.build("c"))
    configs = {}
    for model in ("writer", "classifier"):
        configs[model] = model_config_pb2.ModelConfig()
        text_format.Parse((house.root / model / "config.pbtxt").read_text(), configs[model])
    assert configs["writer"].model_transaction_policy.decoupled
    assert not configs["writer"].response_cache.enable
    assert configs["classifier"].HasField("dynamic_batching")
    assert configs["classifier"].response_cache.enable
    assert [warm.batch_size for warm in configs["classifier"].model_warmup] == [1, 8]
    assert list(configs["classifier"].output[2].dims) == [2]
