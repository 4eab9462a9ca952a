"""Artefacts, in a local folder and behind S3's protocol."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import s3fs

from services.kit.errors import InvalidArgumentError, NotFoundError, UnavailableError
from services.kit.storage.artifacts import ArtifactStore, digest_folder
from tests.service_process import free_port

ROOT = Path(__file__).parents[3]


def _folder(root: Path) -> Path:
    source = root / "source"
    (source / "deep").mkdir(parents=True)
    (source / "manifest.json").write_text("{}")
    (source / "deep" / "weights.bin").write_bytes(bytes(range(256)) * 64)
    (source / "评论.txt").write_text("房间很干净", encoding="utf-8")
    return source


def test_a_folder_comes_back_as_it_was(artifacts: ArtifactStore, tmp_path: Path) -> None:
    source, uri = _folder(tmp_path), artifacts.uri("runs", "1")
    assert not artifacts.exists(uri)
    artifacts.put_folder(source, uri)
    artifacts.put_folder(source, uri)  # a repeat after a crash
    assert artifacts.exists(uri)
    found = artifacts.fetch_folder(uri, tmp_path / "cache")
    assert digest_folder(found) == digest_folder(source)
    assert digest_folder(artifacts.fetch_folder(uri, tmp_path / "cache")) == digest_folder(source)


def test_a_folder_that_is_not_there_is_named(artifacts: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="runs/none"):
        artifacts.fetch_folder(artifacts.uri("runs", "none"), tmp_path / "cache")


def test_neighbours_do_not_mix(artifacts: ArtifactStore, tmp_path: Path) -> None:
    source = _folder(tmp_path)
    artifacts.put_folder(source, artifacts.uri("runs", "1"))
    (source / "manifest.json").write_text('{"other": true}')
    artifacts.put_folder(source, artifacts.uri("runs", "10"))
    first = artifacts.fetch_folder(artifacts.uri("runs", "1"), tmp_path / "cache")
    assert (first / "manifest.json").read_text() == "{}"


def test_what_another_process_stored_meanwhile_is_seen(artifacts: ArtifactStore, tmp_path: Path) -> None:
    source = _folder(tmp_path)
    artifacts.put_folder(source, artifacts.uri("runs", "1"))
    artifacts.fetch_folder(artifacts.uri("runs"), tmp_path / "cache")
    late = artifacts.uri("runs", "2")
    assert not artifacts.exists(late)
    put = (
        "import sys; from pathlib import Path; from services.kit.storage.artifacts import ArtifactStore;"
        "ArtifactStore(sys.argv[1]).put_folder(Path(sys.argv[2]), sys.argv[3])"
    )
    subprocess.run([sys.executable, "-c", put, artifacts.root, str(source), late], check=True, cwd=ROOT)
    assert artifacts.exists(late)
    assert digest_folder(artifacts.fetch_folder(late, tmp_path / "cache")) == digest_folder(source)


def test_a_file_is_read_where_there_is_one(artifacts: ArtifactStore, tmp_path: Path) -> None:
    uri = artifacts.uri("datasets", "d")
    assert artifacts.read_file(f"{uri}/manifest.json") is None
    artifacts.put_folder(_folder(tmp_path), uri)
    assert artifacts.read_file(f"{uri}/manifest.json") == b"{}"


def test_what_does_not_fit_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, root = _folder(tmp_path), tmp_path / "root"

    def full(_source: Path, target: Path) -> None:
        Path(target).mkdir()
        (Path(target) / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(OSError, match="No space left"):
        ArtifactStore(root.as_uri()).put_folder(source, f"{root.as_uri()}/runs/1")
    assert not list((root / "runs").iterdir())


def test_a_store_that_is_unavailable_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    store = ArtifactStore("s3://bucket/away")
    for call in (
        lambda: store.exists(store.uri("x")),
        lambda: store.read_file(store.uri("x")),
        lambda: store.put_folder(_folder(tmp_path / "f"), store.uri("x")),
        lambda: store.fetch_folder(store.uri("x"), tmp_path),
    ):
        with pytest.raises(UnavailableError, match="s3://bucket/away"):
            call()


def test_a_store_without_a_driver_is_reported() -> None:
    with pytest.raises(InvalidArgumentError, match=r"tidemill\[s3\]"):
        ArtifactStore("nothing://x").exists("nothing://x/y")
