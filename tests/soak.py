"""Runs a suite several times while both cores are kept busy beside it: a test that assumes a moment fails here.

`python -m tests.soak integration --times 5`, or `make soak SUITE=integration TIMES=5`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_BUSY = "while True: pass"


@contextmanager
def busy(processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keeps as many cores busy as there are `processes`."""
    started = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(processes)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def soak(command: list[str], times: int, processes: int) -> int:
    """Runs a command again and again, until it fails once.

    Returns:
        The exit status of the last run.
    """
    with busy(processes):
        for number in range(1, times + 1):
            began = time.monotonic()
            status = subprocess.call(command)
            sys.stdout.write(f"soak: run {number} of {times}: {status} in {time.monotonic() - began:.0f} s\n")
            sys.stdout.flush()
            if status:
                return status
    return 0


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Runs a suite beside busy processes.")
    parser.add_argument("suite", help="target of the Makefile, such as integration or test")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--busy", type=int, default=2, help="processes that keep a core busy each")
    given = parser.parse_args()
    return soak(["make", given.suite], given.times, given.busy)


if __name__ == "__main__":
    sys.exit(main())
