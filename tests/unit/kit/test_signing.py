"""Builds are signed by the mesh's key; what is changed, added, removed, unsigned or signed by another is refused."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from services.kit.errors import FailedPreconditionError
from services.kit.storage.artifacts import digest_files, digest_folder, file_digest, files_below
from services.kit.storage.signing import SIGNATURE, SigningKey, TrustedKeys


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    made = SigningKey(tmp_path / "keys" / "signing.pem", tmp_path / "keys" / "trusted")
    made.ensure()
    return made


@pytest.fixture
def build(tmp_path: Path, key: SigningKey) -> Path:
    folder = tmp_path / "build"
    (folder / "part").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights" * 1000)
    (folder / "part" / "tokenizer.json").write_text("{}")
    (folder / ".gitattributes").write_text("as good as any other file")
    key.sign(folder)
    return folder


def _refused(key: SigningKey, build: Path) -> FailedPreconditionError:
    with pytest.raises(FailedPreconditionError) as caught:
        TrustedKeys(key.trusted).verify(build)
    return caught.value


def test_the_private_key_is_its_owners_alone_and_is_made_once(key: SigningKey) -> None:
    assert stat.S_IMODE(key.private.stat().st_mode) == 0o600
    before = key.private.read_bytes()
    fingerprint = key.ensure()
    assert key.private.read_bytes() == before
    assert [path.name for path in key.trusted.iterdir()] == [f"{fingerprint}.pub"]
    assert b"PRIVATE" not in (key.trusted / f"{fingerprint}.pub").read_bytes()


def test_a_key_that_others_can_read_signs_nothing(key: SigningKey, build: Path) -> None:
    key.private.chmod(0o640)
    with pytest.raises(FailedPreconditionError, match="read by others"):
        key.sign(build)


def test_an_untouched_build_verifies_to_the_digests_of_its_files(key: SigningKey, build: Path) -> None:
    files = TrustedKeys(key.trusted).verify(build)
    assert sorted(files) == [".gitattributes", "model.onnx", "part/tokenizer.json"]
    assert digest_files(files) == digest_folder(build, without=[SIGNATURE])


def _overwrite(build: Path) -> str:
    (build / "model.onnx").write_bytes(b"Weights" + b"weights" * 999)
    return "model.onnx"


def _truncate(build: Path) -> str:
    (build / "model.onnx").write_bytes(b"weights")
    return "model.onnx"


def _remove(build: Path) -> str:
    (build / "part" / "tokenizer.json").unlink()
    return "part/tokenizer.json"


def _add(build: Path) -> str:
    (build / ".gitignore").write_text("no one signed this")
    return ".gitignore"


def _link(build: Path) -> str:
    content = (build / "model.onnx").read_bytes()
    (build / "model.onnx").unlink()
    (build.parent / "elsewhere").write_bytes(content)
    (build / "model.onnx").symlink_to(build.parent / "elsewhere")
    return "model.onnx"


@pytest.mark.parametrize("harm", [_overwrite, _truncate, _remove, _add, _link])
def test_a_damaged_file_is_named_with_what_was_expected(
    key: SigningKey, build: Path, harm: Callable[[Path], str]
) -> None:
    file = harm(build)
    error = _refused(key, build)
    assert error.reason == "BUILD_DAMAGED"
    assert error.metadata["file"] == file
    assert error.metadata["expected"] != error.metadata["found"]
    assert file in error.message


def test_an_unsigned_build_is_refused(key: SigningKey, build: Path) -> None:
    (build / SIGNATURE).unlink()
    assert _refused(key, build).reason == "BUILD_UNSIGNED"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"verificationMaterial": {"publicKey": {}}}'])
def test_a_broken_signature_is_refused(key: SigningKey, build: Path, content: str) -> None:
    (build / SIGNATURE).write_text(content)
    assert _refused(key, build).reason in ("BUILD_DAMAGED", "BUILD_UNTRUSTED")


def test_a_build_of_another_mesh_is_refused(key: SigningKey, build: Path, tmp_path: Path) -> None:
    foreign = SigningKey(tmp_path / "foreign" / "signing.pem", tmp_path / "foreign" / "trusted")
    foreign.ensure()
    foreign.sign(build)
    assert _refused(key, build).reason == "BUILD_UNTRUSTED"


def test_a_statement_that_was_changed_after_signing_is_refused(key: SigningKey, build: Path) -> None:
    _overwrite(build)
    bundle = json.loads((build / SIGNATURE).read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    files = _digests(build)
    for item in statement["predicate"]["resources"]:
        item["digest"] = files[item["name"]]
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (build / SIGNATURE).write_text(json.dumps(bundle))
    assert _refused(key, build).reason == "BUILD_UNTRUSTED"


def _digests(build: Path) -> dict[str, str]:
    return {path.relative_to(build).as_posix(): file_digest(path) for path in files_below(build)}


def test_a_key_name_cannot_lead_out_of_the_folder_of_trusted_keys(key: SigningKey, build: Path, tmp_path: Path) -> None:
    (tmp_path / "own.pub").write_bytes(next(key.trusted.iterdir()).read_bytes())
    bundle = json.loads((build / SIGNATURE).read_text())
    bundle["verificationMaterial"]["publicKey"]["hint"] = "../../own"
    (build / SIGNATURE).write_text(json.dumps(bundle))
    assert _refused(key, build).reason == "BUILD_UNTRUSTED"


def test_after_a_rotation_earlier_builds_are_trusted_until_the_earlier_key_is_deleted(
    key: SigningKey, build: Path, tmp_path: Path
) -> None:
    first = key.ensure()
    key.private.rename(tmp_path / "put-away.pem")
    second = key.ensure()
    assert second != first
    trusted = TrustedKeys(key.trusted)
    assert trusted.verify(build)
    (key.trusted / f"{first}.pub").unlink()
    assert _refused(key, build).reason == "BUILD_UNTRUSTED"
    key.sign(build)
    assert trusted.verify(build)
