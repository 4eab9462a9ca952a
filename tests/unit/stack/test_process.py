"""Processes are distinguished by their start, and found again by their tag."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from infra.stack.process import TAG, end_tagged, is_alive, last_lines, rotate, start_ticks, tagged


def test_a_living_process_has_a_start_and_an_ended_one_has_none() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks = start_ticks(child.pid)
    assert is_alive(child.pid, ticks)
    assert ticks is not None
    assert not is_alive(child.pid, ticks + 1)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(child.pid, ticks), "a zombie lives no more"
    child.communicate()
    assert start_ticks(child.pid) is None
    assert not is_alive(None, None)


def test_tagged_processes_are_ended_others_not(tmp_path: Path) -> None:
    def start(tag: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, TAG: str(tag)}
        code = (
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(99)"
        )
        child = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    mine, other = start(tmp_path / "mine"), start(tmp_path / "other")
    try:
        assert [process.pid for process in tagged(tmp_path / "mine")] == [mine.pid]
        assert end_tagged(tmp_path / "mine", grace_s=0.2) == 1
        assert start_ticks(mine.pid) is None
        assert other.poll() is None
    finally:
        for child in (mine, other):
            child.kill()
            child.communicate()


def test_logs_rotate_and_the_oldest_goes(tmp_path: Path) -> None:
    log = tmp_path / "kafka.log"
    for number in range(5):
        rotate(log, keep=2)
        log.write_text(f"run {number}")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "kafka.log": "run 4",
        "kafka.log.1": "run 3",
        "kafka.log.2": "run 2",
    }


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"\xff\n".join(b"line %d" % number for number in range(5000)) + b"\n\n")
    assert last_lines(log, 2)[-1] == "line 4999"
    assert len(last_lines(log, 2)) == 2
    assert last_lines(tmp_path / "none") == []
