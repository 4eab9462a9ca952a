"""Files come into place whole, checked, and are not fetched or digested again without need."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from infra.stack.assets import store
from infra.stack.assets.store import is_checked, place_folder, take_in
from infra.stack.assets.table import PyPIFile
from infra.stack.errors import AssetError

CONTENT = b"the file" * 1000
ASSET = PyPIFile("thing", "1.0", "thing-1.0.whl", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def fetching(content: bytes, calls: list[Path]) -> Callable[[Path], Path]:
    def fetch(folder: Path) -> Path:
        calls.append(folder)
        path = folder / ASSET.filename
        path.write_bytes(content)
        return path

    return fetch


def left_in(folder: Path) -> list[str]:
    """The names of what lies there, without the notes and locks of the store."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith((".checked", ".lock")))


def refuse(folder: Path) -> Path:
    raise AssertionError("fetched again")


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    target = tmp_path / "downloads" / ASSET.filename
    calls: list[Path] = []
    assert take_in(ASSET, fetching(CONTENT, calls), target).read_bytes() == CONTENT
    take_in(ASSET, refuse, target)
    assert len(calls) == 1
    assert not calls[0].exists()


def test_another_content_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / ASSET.filename
    with pytest.raises(AssetError, match="mirror settings"):
        take_in(ASSET, fetching(CONTENT + b"!", []), target)
    assert left_in(tmp_path) == []


def test_a_fetch_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> Path:
        (folder / "part").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_in(ASSET, broken, tmp_path / ASSET.filename)
    assert left_in(tmp_path) == []


def test_what_a_killed_fetch_has_left_is_in_nobody_s_way(tmp_path: Path) -> None:
    left = tmp_path / f".{ASSET.filename}.partial"
    left.mkdir()
    (left / "part").write_bytes(b"half")
    take_in(ASSET, fetching(CONTENT, []), tmp_path / ASSET.filename)
    assert left_in(tmp_path) == [ASSET.filename]


def test_two_that_want_the_same_file_at_once_fetch_it_once(tmp_path: Path) -> None:
    target = tmp_path / ASSET.filename
    calls: list[Path] = []
    first_is_fetching, go_on = threading.Event(), threading.Event()

    def slow(folder: Path) -> Path:
        first_is_fetching.set()
        assert go_on.wait(10)
        return fetching(CONTENT, calls)(folder)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(take_in, ASSET, slow, target)
        assert first_is_fetching.wait(10)
        second = pool.submit(take_in, ASSET, refuse, target)
        assert wait([second], timeout=0.2).not_done
        go_on.set()
        assert first.result() == second.result() == target
    assert len(calls) == 1


def test_a_file_that_was_changed_is_fetched_again(tmp_path: Path) -> None:
    target = tmp_path / ASSET.filename
    take_in(ASSET, fetching(CONTENT, []), target)
    target.write_bytes(CONTENT[::-1])
    calls: list[Path] = []
    take_in(ASSET, fetching(CONTENT, calls), target)
    assert target.read_bytes() == CONTENT
    assert len(calls) == 1


def test_the_content_is_read_again_only_when_the_file_looks_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / ASSET.filename
    take_in(ASSET, fetching(CONTENT, []), target)
    digested: list[Path] = []
    real = store.sha256_of

    def counted(path: Path) -> str:
        digested.append(path)
        return real(path)

    monkeypatch.setattr(store, "sha256_of", counted)
    assert is_checked(target, ASSET.size, ASSET.sha256)
    assert digested == []
    os.utime(target, ns=(1, 1))
    assert is_checked(target, ASSET.size, ASSET.sha256)
    assert is_checked(target, ASSET.size, ASSET.sha256)
    assert digested == [target]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "data"

    def half(folder: Path) -> None:
        (folder / "one").write_text("1")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        place_folder(target, "v1", half)
    assert left_in(tmp_path) == []


def test_a_folder_is_built_again_when_its_recipe_changes(tmp_path: Path) -> None:
    target = tmp_path / "data"
    built: list[str] = []

    def build(name: str) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            built.append(name)
            (folder / name).write_text(name)

        return write

    place_folder(target, "v1", build("old"))
    place_folder(target, "v1", build("old"))
    place_folder(target, "v2", build("new"))
    assert built == ["old", "new"]
    assert {path.name for path in target.iterdir()} == {"new", ".recipe"}
