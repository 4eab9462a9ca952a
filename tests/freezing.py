"""Freezes a process: it accepts connections and answers nothing, as on a machine that hangs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import wait_until


@contextmanager
def frozen(pid: int | None) -> Iterator[None]:
    """Freezes a process during the block; all of its threads are stopped before the block begins."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: set(_states(pid)) == {"T"}, f"the standstill of process {pid}")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _states(pid: int) -> list[str]:
    """The state of each thread, as in proc(5)."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread may end meanwhile
            found.append(task.read_text().rpartition(")")[2].split()[0])
    return found
