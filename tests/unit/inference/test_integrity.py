"""Files of published versions are verified before each load and when they look changed; only what verifies serves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from services.inference.adapters.model_store import SqlModelStore
from services.inference.app.route_book import RouteBook
from services.inference.domain.model import IntegrityState, Lineage, ModelVersion, VersionState
from services.kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
    TidemillError,
)
from services.kit.storage.signing import SIGNATURE, SigningKey
from tests.unit.inference.test_publishing import Harness, ManualClock, harness

__all__ = ["harness"]


def _version(harness: Harness, number: int = 1) -> ModelVersion:
    found = SqlModelStore(harness.engine).version("m", number)
    assert found is not None
    return found


def _overwrite(file: Path) -> None:
    """Overwrites it in place and keeps its size and time, as a careful attacker would."""
    before = file.stat()
    file.chmod(0o644)
    with file.open("r+b") as stream:
        stream.write(b"X")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _truncate(file: Path) -> None:
    file.chmod(0o644)
    with file.open("r+b") as stream:
        stream.truncate(3)


def _served_file(harness: Harness, number: int = 1) -> Path:
    return harness.root / f"m.{number}" / str(number) / "build" / "openvino_model.bin"


@pytest.mark.parametrize("harm", [_overwrite, _truncate, Path.unlink])
def test_a_damaged_copy_is_replaced_from_the_artefact_store_before_it_is_loaded(
    harness: Harness, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    harm(_served_file(harness))
    # Triton restarts: nothing is loaded any more.
    harness.server.ready = {}
    harness.reconciler.reconcile()
    assert harness.server.ready == {"m": frozenset({1})}
    assert _served_file(harness).read_text() == "one openvino_model.bin"
    assert "BUILD_DAMAGED" in caplog.text
    assert "openvino_model.bin is damaged: expected" in caplog.text
    assert _version(harness).integrity.state is IntegrityState.VERIFIED


def test_a_file_that_changes_while_its_version_serves_is_noticed_and_replaced(harness: Harness) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    harness.reconciler.reconcile()
    assert harness.server.loads == ["m"]
    _overwrite(_served_file(harness))
    harness.reconciler.reconcile()
    assert harness.server.loads == ["m", "m"]
    assert _served_file(harness).read_text() == "one openvino_model.bin"


def test_a_file_that_only_looks_changed_is_read_once_and_left_alone(harness: Harness) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    _served_file(harness).touch()
    harness.reconciler.reconcile()
    assert harness.server.loads == ["m"]
    version = _version(harness)
    harness.reconciler.reconcile()
    assert _version(harness).integrity == version.integrity


def test_the_version_before_serves_when_artefact_and_copy_are_damaged(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    publishing.publish("m", harness.build("two"))
    for file in (_served_file(harness, 2), harness.folder / "builds" / "two" / "openvino_model.bin"):
        _truncate(file)
    harness.server.ready = {}
    harness.reconciler.reconcile()
    assert harness.states() == [(2, VersionState.FAILED), (1, VersionState.SERVING)]
    assert harness.server.ready == {"m": frozenset({1})}
    assert harness.serving() == 1
    failed = _version(harness, 2)
    assert failed.integrity.state is IntegrityState.DAMAGED
    assert "openvino_model.bin is damaged: expected" in failed.integrity.message
    assert "models/m/versions/1 serves in its place" in failed.message
    assert "models/m/versions/2 is out of service" in caplog.text


def test_a_model_without_a_good_version_answers_nothing_says_why_and_comes_back_by_itself(harness: Harness) -> None:
    harness.clock = clock = ManualClock()
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    artefact = harness.folder / "builds" / "one"
    shutil.copytree(artefact, harness.folder / "backup")
    for file in (_served_file(harness), artefact / "openvino_model.bin"):
        _truncate(file)
    harness.reconciler.reconcile()
    # What Triton still answers from may be mapped from the damaged file.
    assert harness.server.ready == {}
    with pytest.raises(FailedPreconditionError, match=r"openvino_model\.bin is damaged: expected") as caught:
        harness.serving()
    assert caught.value.reason == "BUILD_DAMAGED"
    assert caught.value.metadata["file"] == "openvino_model.bin"
    assert caught.value.metadata["expected"] != caught.value.metadata["found"]
    shutil.rmtree(artefact)
    (harness.folder / "backup").rename(artefact)
    clock.seconds += 600
    harness.reconciler.reconcile()
    assert harness.server.ready == {"m": frozenset({1})}
    assert harness.serving() == 1


def test_a_start_of_the_service_verifies_what_serves(harness: Harness) -> None:
    harness.publishing().publish("m", harness.build("one"))
    _overwrite(_served_file(harness))
    harness.book = RouteBook()
    harness.restart()
    harness.reconciler.fill_book()
    harness.reconciler.reconcile()
    assert harness.server.loads == ["m", "m"]
    assert _served_file(harness).read_text() == "one openvino_model.bin"


@pytest.mark.parametrize("name", ["model.py", "tidemill_model/classification.py", "tidemill_model/added.py"])
def test_code_beside_the_build_is_verified_too(harness: Harness, name: str) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    # Even where the artefact is gone: the build inside the copy is good.
    shutil.rmtree(harness.folder / "builds" / "one")
    file = harness.root / "m.1" / "1" / name
    file.write_text("raise SystemExit")
    harness.reconciler.reconcile()
    assert harness.server.loads == ["m", "m"]
    assert not file.exists() or "raise SystemExit" not in file.read_text()


def test_byte_code_of_no_one_is_gone_when_a_load_begins(harness: Harness) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    cache = harness.root / "m.1" / "1" / "tidemill_model" / "__pycache__"
    cache.mkdir()
    (cache / "classification.cpython-311.pyc").write_bytes(b"poison")
    harness.reconciler.reconcile()
    assert harness.server.loads == ["m"]
    harness.server.ready = {}
    harness.reconciler.reconcile()
    assert harness.server.loads == ["m", "m"]
    assert not cache.exists()


def test_a_signed_build_of_another_version_is_not_loaded_in_its_place(harness: Harness) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    other = harness.build("two")
    shutil.rmtree(harness.root / "m.1" / "1" / "build")
    shutil.copytree(harness.folder / "builds" / "two", harness.root / "m.1" / "1" / "build")
    harness.reconciler.reconcile()
    assert _served_file(harness).read_text() == "one openvino_model.bin"
    with pytest.raises(FailedPreconditionError) as caught:
        publishing.publish("m", replace(other, digest="0" * 64))
    assert caught.value.reason == "DIGEST_MISMATCH"


def _publish_error(harness: Harness, build: Lineage) -> TidemillError:
    with pytest.raises(TidemillError) as caught:
        harness.publishing().publish("m", build)
    assert harness.states() == []
    return caught.value


def test_a_damaged_an_unsigned_and_a_foreign_build_are_refused_by_name(harness: Harness, tmp_path: Path) -> None:
    damaged, unsigned, foreign = harness.build("damaged"), harness.build("unsigned"), harness.build("foreign")
    builds = harness.folder / "builds"
    _overwrite(builds / "damaged" / "tokenizer.json")
    error = _publish_error(harness, damaged)
    assert (error.reason, error.metadata["file"]) == ("BUILD_DAMAGED", "tokenizer.json")
    (builds / "unsigned" / SIGNATURE).unlink()
    assert _publish_error(harness, unsigned).reason == "BUILD_UNSIGNED"
    stranger = SigningKey(tmp_path / "stranger" / "signing.pem", tmp_path / "stranger" / "trusted")
    stranger.ensure()
    stranger.sign(builds / "foreign")
    assert _publish_error(harness, foreign).reason == "BUILD_UNTRUSTED"


def test_a_key_that_is_no_longer_trusted_takes_its_builds_out_of_service(harness: Harness) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    for key in harness.key.trusted.iterdir():
        key.unlink()
    harness.reconciler.reconcile()
    assert harness.server.ready == {}
    with pytest.raises(FailedPreconditionError, match="not among the trusted keys"):
        harness.serving()


def test_a_roll_back_to_a_damaged_version_leaves_what_serves(harness: Harness) -> None:
    publishing = harness.publishing()
    publishing.publish("m", harness.build("one"))
    publishing.publish("m", harness.build("two"))
    for file in (_served_file(harness), harness.folder / "builds" / "one" / "openvino_model.bin"):
        _overwrite(file)
    with pytest.raises(FailedPreconditionError, match=r"openvino_model\.bin is damaged"):
        publishing.roll_back("m")
    assert harness.states() == [(2, VersionState.SERVING), (1, VersionState.RETIRED)]
    assert _version(harness).integrity.state is IntegrityState.DAMAGED
    harness.reconciler.reconcile()
    assert harness.server.ready == {"m": frozenset({2})}


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("file:///etc", PermissionDeniedError),
        ("/etc", PermissionDeniedError),
        ("{store}", PermissionDeniedError),
        ("{store}/../builds/one", InvalidArgumentError),
        ("{store}/%2e%2e/builds/one", InvalidArgumentError),
        ("file://localhost{path}/builds/one", PermissionDeniedError),
        ("http://127.0.0.1:1/build", PermissionDeniedError),
        ("memory://build", PermissionDeniedError),
        ("simplecache::{store}/builds/one", InvalidArgumentError),
        ("reference::file:///dev/zero", InvalidArgumentError),
        ("builds/one", PermissionDeniedError),
        ("{store}/builds/link", PermissionDeniedError),
        ("{store}/linked/one", PermissionDeniedError),
        ("{store}/builds/one?x=1", InvalidArgumentError),
        ("{store}/builds/one%00", InvalidArgumentError),
    ],
)
def test_a_build_outside_the_artefact_store_is_refused(harness: Harness, uri: str, kind: type[TidemillError]) -> None:
    build = harness.build("one")
    (harness.folder / "builds" / "link").symlink_to(harness.folder / "builds" / "one")
    (harness.folder / "linked").symlink_to(harness.folder / "builds")
    given = uri.format(store=f"file://{harness.folder}", path=harness.folder)
    error = _publish_error(harness, replace(build, artifact_uri=given))
    assert isinstance(error, kind)
    assert error.metadata["uri"] == given
