"""Files of published versions are verified before each load and when they look changed; only what verifies serves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from services.inference.app.serving import ServingTable
from services.inference.domain.model import IntegrityState, Lineage, ModelVersion, Task, VersionState
from services.kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
    TidemillError,
)
from services.kit.storage.signing import SIGNATURE, SigningKey
from tests.unit.inference.test_publishing import House, Ticking, house

__all__ = ["house"]


def _version(house: House, number: int = 1) -> ModelVersion:
    return next(v for v in house.publishing().versions("m", 1 << 30, 100) if v.number == number)


def _overwrite(file: Path) -> None:
    """In place, and with the size and the time of before, as a careful hand would."""
    before = file.stat()
    file.chmod(0o644)
    with file.open("r+b") as stream:
        stream.write(b"X")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _truncate(file: Path) -> None:
    file.chmod(0o644)
    with file.open("r+b") as stream:
        stream.truncate(3)


def _served_file(house: House, number: int = 1) -> Path:
    return house.root / "m" / str(number) / "build" / "model.onnx"


@pytest.mark.parametrize("harm", [_overwrite, _truncate, Path.unlink])
def test_a_damaged_copy_is_replaced_from_the_artefact_store_before_it_is_loaded(
    house: House, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    harm(_served_file(house))
    # Triton restarts: nothing is loaded any more.
    house.server.ready = {}
    publishing.reconcile()
    assert house.server.ready == {"m": frozenset({1})}
    assert _served_file(house).read_text() == "one model.onnx"
    assert "BUILD_DAMAGED" in caplog.text
    assert "model.onnx is damaged: expected" in caplog.text
    assert _version(house).integrity.state is IntegrityState.VERIFIED


def test_a_file_that_changes_while_its_version_serves_is_noticed_and_replaced(house: House) -> None:
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    publishing.reconcile()
    assert house.server.loads == ["m"]
    _overwrite(_served_file(house))
    publishing.reconcile()
    assert house.server.loads == ["m", "m"]
    assert _served_file(house).read_text() == "one model.onnx"


def test_a_file_that_only_looks_changed_is_read_once_and_left_alone(house: House) -> None:
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    _served_file(house).touch()
    publishing.reconcile()
    assert house.server.loads == ["m"]
    version = _version(house)
    publishing.reconcile()
    assert _version(house).integrity == version.integrity


def test_the_version_before_serves_when_artefact_and_copy_are_damaged(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    publishing.publish("m", house.build("two"))
    for file in (_served_file(house, 2), house.folder / "builds" / "two" / "model.onnx"):
        _truncate(file)
    house.server.ready = {}
    publishing.reconcile()
    assert house.states() == [(2, VersionState.FAILED), (1, VersionState.SERVING)]
    assert house.server.ready == {"m": frozenset({1})}
    assert house.table.require("m", Task.TEXT_CLASSIFICATION).number == 1
    failed = _version(house, 2)
    assert failed.integrity.state is IntegrityState.DAMAGED
    assert "model.onnx is damaged: expected" in failed.integrity.message
    assert "models/m/versions/1 serves in its place" in failed.message
    assert "models/m/versions/2 is out of service" in caplog.text


def test_a_model_without_a_good_version_answers_nothing_says_why_and_comes_back_by_itself(house: House) -> None:
    house.clock = clock = Ticking()
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    artefact = house.folder / "builds" / "one"
    shutil.copytree(artefact, house.folder / "backup")
    for file in (_served_file(house), artefact / "model.onnx"):
        _truncate(file)
    publishing.reconcile()
    # What Triton still answers from may be mapped from the damaged file.
    assert house.server.ready == {}
    with pytest.raises(FailedPreconditionError, match=r"model\.onnx is damaged: expected") as caught:
        house.table.require("m", Task.TEXT_CLASSIFICATION)
    assert caught.value.reason == "BUILD_DAMAGED"
    assert caught.value.metadata["file"] == "model.onnx"
    assert caught.value.metadata["expected"] != caught.value.metadata["found"]
    shutil.rmtree(artefact)
    (house.folder / "backup").rename(artefact)
    clock.seconds += 600
    publishing.reconcile()
    assert house.server.ready == {"m": frozenset({1})}
    assert house.table.require("m", Task.TEXT_CLASSIFICATION).number == 1


def test_a_start_of_the_service_verifies_what_serves(house: House) -> None:
    house.publishing().publish("m", house.build("one"))
    _overwrite(_served_file(house))
    house.table = ServingTable()
    restarted = house.publishing()
    restarted.fill_table()
    restarted.reconcile()
    assert house.server.loads == ["m", "m"]
    assert _served_file(house).read_text() == "one model.onnx"


@pytest.mark.parametrize("name", ["model.py", "tidemill_model/classification.py", "tidemill_model/added.py"])
def test_code_beside_the_build_is_verified_too(house: House, name: str) -> None:
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    # Even where the artefact is gone: the build inside the copy is good.
    shutil.rmtree(house.folder / "builds" / "one")
    file = house.root / "m" / "1" / name
    file.write_text("raise SystemExit")
    publishing.reconcile()
    assert house.server.loads == ["m", "m"]
    assert not file.exists() or "raise SystemExit" not in file.read_text()


def test_byte_code_of_nobody_is_gone_when_a_load_begins(house: House) -> None:
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    cache = house.root / "m" / "1" / "tidemill_model" / "__pycache__"
    cache.mkdir()
    (cache / "classification.cpython-311.pyc").write_bytes(b"poison")
    publishing.reconcile()
    assert house.server.loads == ["m"]
    house.server.ready = {}
    publishing.reconcile()
    assert house.server.loads == ["m", "m"]
    assert not cache.exists()


def test_a_signed_build_of_another_version_is_not_loaded_in_its_place(house: House) -> None:
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    other = house.build("two")
    shutil.rmtree(house.root / "m" / "1" / "build")
    shutil.copytree(house.folder / "builds" / "two", house.root / "m" / "1" / "build")
    publishing.reconcile()
    assert _served_file(house).read_text() == "one model.onnx"
    with pytest.raises(FailedPreconditionError) as caught:
        publishing.publish("m", replace(other, digest="0" * 64))
    assert caught.value.reason == "DIGEST_MISMATCH"


def _publish_error(house: House, build: Lineage) -> TidemillError:
    with pytest.raises(TidemillError) as caught:
        house.publishing().publish("m", build)
    assert house.states() == []
    return caught.value


def test_a_damaged_an_unsigned_and_a_foreign_build_are_refused_by_name(house: House, tmp_path: Path) -> None:
    damaged, unsigned, foreign = house.build("damaged"), house.build("unsigned"), house.build("foreign")
    builds = house.folder / "builds"
    _overwrite(builds / "damaged" / "tokenizer.json")
    error = _publish_error(house, damaged)
    assert (error.reason, error.metadata["file"]) == ("BUILD_DAMAGED", "tokenizer.json")
    (builds / "unsigned" / SIGNATURE).unlink()
    assert _publish_error(house, unsigned).reason == "BUILD_UNSIGNED"
    stranger = SigningKey(tmp_path / "stranger" / "signing.pem", tmp_path / "stranger" / "trusted")
    stranger.ensure()
    stranger.sign(builds / "foreign")
    assert _publish_error(house, foreign).reason == "BUILD_UNTRUSTED"


def test_a_key_that_is_no_longer_trusted_takes_its_builds_out_of_service(house: House) -> None:
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    for key in house.key.trusted.iterdir():
        key.unlink()
    publishing.reconcile()
    assert house.server.ready == {}
    with pytest.raises(FailedPreconditionError, match="not among the trusted keys"):
        house.table.require("m", Task.TEXT_CLASSIFICATION)


def test_a_roll_back_to_a_damaged_version_leaves_what_serves(house: House) -> None:
    publishing = house.publishing()
    publishing.publish("m", house.build("one"))
    publishing.publish("m", house.build("two"))
    for file in (_served_file(house), house.folder / "builds" / "one" / "model.onnx"):
        _overwrite(file)
    with pytest.raises(FailedPreconditionError, match=r"model\.onnx is damaged"):
        publishing.roll_back("m")
    assert house.states() == [(2, VersionState.SERVING), (1, VersionState.RETIRED)]
    assert _version(house).integrity.state is IntegrityState.DAMAGED
    publishing.reconcile()
    assert house.server.ready == {"m": frozenset({2})}


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
def test_a_build_outside_the_artefact_store_is_refused(house: House, uri: str, kind: type[TidemillError]) -> None:
    build = house.build("one")
    (house.folder / "builds" / "link").symlink_to(house.folder / "builds" / "one")
    (house.folder / "linked").symlink_to(house.folder / "builds")
    given = uri.format(store=f"file://{house.folder}", path=house.folder)
    error = _publish_error(house, replace(build, artifact_uri=given))
    assert isinstance(error, kind)
    assert error.metadata["uri"] == given
