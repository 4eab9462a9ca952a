"""The soak: it runs a command several times beside busy processes, stops at a failure, and leaves none of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.soak import busy, soak


def test_it_runs_as_often_as_asked_and_says_how_long_each_run_took(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "runs"
    command = [sys.executable, "-c", f"open({str(file)!r}, 'a').write('x')"]
    assert soak(command, times=3, processes=1) == 0
    assert file.read_text() == "xxx"
    assert capfd.readouterr().out.count("of 3: 0 in") == 3


def test_it_ends_with_the_first_failure(capfd: pytest.CaptureFixture[str]) -> None:
    assert soak([sys.executable, "-c", "raise SystemExit(3)"], times=5, processes=1) == 3
    assert capfd.readouterr().out.startswith("soak: run 1 of 5: 3 in")


def test_no_busy_process_is_left() -> None:
    with busy(2) as processes:
        assert [process.poll() for process in processes] == [None, None]
    assert all(process.poll() is not None for process in processes)
