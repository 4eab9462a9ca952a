"""A fork server without libraries, whose jobs are Python programs."""

from __future__ import annotations

from pathlib import Path

from services.training.adapters.job import EXIT_AT_WORK, WorkerLock
from services.training.worker.fork_server import ForkServer, given_connection


def work_on(job: Path) -> int:
    """Executes a program under the lock of its folder."""
    with WorkerLock(job.parent) as lock:
        if not lock.held:
            return EXIT_AT_WORK
        exec(job.read_text())
        return 3


if __name__ == "__main__":
    ForkServer(given_connection(), work_on).serve()
