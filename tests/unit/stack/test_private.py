"""Secrets in files that only their user can read."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.stack.private import place_secret


def test_a_secret_is_made_once_and_only_its_user_can_read_it(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    made = place_secret(file)
    assert len(made) == 64
    assert place_secret(file) == made
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_secret_made_by_another_process_between_look_and_link_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    link = os.link

    def late(source: Path, target: Path) -> None:
        # Another process was faster, between our look and our link.
        if not target.exists():
            target.write_text("theirs")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert place_secret(file) == "theirs"
    assert list(tmp_path.iterdir()) == [file]


def test_all_who_make_a_secret_at_the_same_time_get_the_same(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(place_secret, [file] * 8))
    assert secrets == {file.read_text().strip()}
    assert list(tmp_path.iterdir()) == [file]
