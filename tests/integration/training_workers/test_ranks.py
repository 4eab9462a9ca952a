"""Processes that share a training end together, whichever ends first, and the run learns why."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.training.adapters.job import EXIT_FAILED, EXIT_RANK_LOST, FAILURE_FILE
from tests.integration.training_workers.ranks_program import KINDS, OWN_ERROR

_ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ranks_program` left."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.integration.training_workers.ranks_program", str(folder)],
        cwd=_ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (folder / "log").write_text(ended.stderr)
    return folder


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("finishes", 0),
        ("fails", EXIT_FAILED),
        ("is killed", EXIT_RANK_LOST),
        ("first fails", OWN_ERROR),
        ("first is killed", -signal.SIGKILL),
        ("first is killed early", -signal.SIGKILL),
    ],
)
def test_all_processes_end_with_the_first(folder: Path, kind: str, code: int) -> None:
    ends: dict[str, Any] = json.loads((folder / "ends.json").read_text())
    assert ends.keys() == set(KINDS)
    assert ends[kind]["code"] == code, (folder / "log").read_text()
    assert ends[kind]["gone"], "a process is left"


def test_what_failed_is_the_failure_of_the_run_and_what_was_killed_is_not(folder: Path) -> None:
    # The connections of the others broke, which is not the cause.
    assert json.loads((folder / "fails" / FAILURE_FILE).read_text()) == {
        "reason": "NOT_THERE",
        "message": "the second process has no such file",
        "metadata": {},
    }
    assert {kind for kind in KINDS if (folder / kind / FAILURE_FILE).exists()} == {"fails"}
    assert "process 3 of 3 was killed by signal 9" in (folder / "log").read_text()


def test_nothing_of_the_meeting_is_left(folder: Path) -> None:
    left = {kind for kind in KINDS if list((folder / kind).glob("ranks-*"))}
    # Of a run that was killed, the next process of the run removes it.
    assert left == {"first is killed", "first is killed early"}
