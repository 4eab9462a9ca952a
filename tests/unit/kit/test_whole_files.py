"""A file is replaced whole or stays as it was, whoever else replaces it at the same time."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.kit.whole_files import OWNER_ONLY, create_text, replace_text, replacing


def test_the_new_content_is_there_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_text(path, "old")
    with replacing(path) as file:
        file.write("neu: ü".encode())
        file.flush()
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "neu: ü"
    assert list(tmp_path.iterdir()) == [path]


def test_what_breaks_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_text(path, "old")

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_is_its_owner_s(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("open to all")
    path.chmod(0o644)
    replace_text(path, "secret", OWNER_ONLY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_threads_that_replace_the_same_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    texts = [f"{number}" * 10_000 for number in range(8)]
    with ThreadPoolExecutor(len(texts)) as pool:
        for done in [pool.submit(replace_text, path, text) for text in texts * 20]:
            done.result()
    assert path.read_text(encoding="utf-8") in texts
    assert list(tmp_path.iterdir()) == [path]


def test_of_those_that_create_a_file_at_the_same_time_one_does(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: create_text(file, str(number), OWNER_ONLY), range(32)))
    first = file.read_text()
    create_text(file, "another")
    assert file.read_text() == first
    assert file.stat().st_mode & 0o777 == OWNER_ONLY
    assert list(tmp_path.iterdir()) == [file]
