"""Ends the processes that a killed supervisor left: `python guard.py RUN`, with a pipe from the supervisor.

The kernel ends the supervisor's children with it (see `launch.py`), but not their children, such as a training run.
When the pipe closes, for whatever reason, this process kills everything that carries the run's mark. It is started as
a file and needs the standard library only, so that it stays small.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

RUN = "TIDEMILL_STACK_RUN"
"""Environment variable that every process of one supervisor's run carries."""

_ROUNDS = 100
_PAUSE_S = 0.05


def marked(run: str) -> list[int]:
    """Ids of all processes but this one that carry the mark of a run."""
    mark = f"{RUN}={run}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def main(run: str) -> None:
    """Waits for the end of the pipe, then kills until nothing is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    for _ in range(_ROUNDS):
        left = marked(run)
        if not left:
            return
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1])
