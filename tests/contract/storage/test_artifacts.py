"""Artefacts, in a local folder and behind S3's protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.kit.errors import NotFoundError
from services.kit.storage.artifacts import ArtifactStore, digest_folder


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
