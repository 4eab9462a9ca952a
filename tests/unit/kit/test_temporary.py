"""Temporary files lie on the disk that is watched, and none outlives its process for long."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from infra.stack.layout import python_path
from services.kit.storage.temporary import FOLDER, temporary_files

_WRITES = """
import os, subprocess, sys, tempfile
from pathlib import Path
from services.kit.storage.temporary import temporary_files
with temporary_files(Path(sys.argv[1]), "killed"):
    tempfile.mkstemp(prefix="left-")
    print(tempfile.gettempdir(), subprocess.check_output(["sh", "-c", "echo $TMPDIR"], text=True).strip(), flush=True)
    sys.stdin.read()
"""


def names_of(state: Path) -> list[str]:
    return [path.name.partition("-")[0] for path in (state / FOLDER).iterdir() if path.is_dir()]


def test_temporary_files_of_a_process_and_its_children_lie_below_the_state_until_it_ends(tmp_path: Path) -> None:
    before = tempfile.gettempdir(), os.environ.get("TMPDIR")
    with temporary_files(tmp_path, "mine"):
        with tempfile.NamedTemporaryFile() as file, tempfile.SpooledTemporaryFile(max_size=1) as spooled:
            spooled.write(b"more than it keeps in memory")
            assert Path(file.name).is_relative_to(tmp_path)
            assert Path(f"/proc/self/fd/{spooled.fileno()}").readlink().is_relative_to(tmp_path)
        child = subprocess.check_output(
            [sys.executable, "-c", "import tempfile; print(tempfile.gettempdir())"], text=True
        )
        assert child.strip() == tempfile.gettempdir()
        (own,) = (path for path in (tmp_path / FOLDER).iterdir() if path.is_dir())
        assert [path.stat().st_mode & 0o077 for path in (own, own.parent)] == [0, 0]
    assert (tempfile.gettempdir(), os.environ.get("TMPDIR")) == before
    assert names_of(tmp_path) == []


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": python_path()}
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITES, str(tmp_path)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    own, of_its_child = process.stdout.readline().split()
    assert own == of_its_child
    with temporary_files(tmp_path, "second"):
        assert any(Path(own).glob("left-*")), "of a process that lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert names_of(tmp_path) == ["killed"]
    with temporary_files(tmp_path, "third"):
        assert names_of(tmp_path) == ["third"]


def test_a_state_that_cannot_be_written_is_reported_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("not a folder")
    before = tempfile.gettempdir()
    with caplog.at_level(logging.WARNING), temporary_files(tmp_path / "state", "mine"):
        assert tempfile.gettempdir() == before
    assert f"temporary files are in {before}, whose free space is not watched" in caplog.text
