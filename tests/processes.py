"""Looks at the processes of a mesh, some of which live for a moment only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def unless_ended(pid: int) -> Iterator[None]:
    """For a look at one process: it may end meanwhile, and then there is nothing to find wrong."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            raise
