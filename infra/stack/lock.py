"""Keeps two supervisors from using one state folder; the kernel releases the lock when a process dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager

from infra.stack.errors import StackError
from infra.stack.layout import State

_PATIENCE_S = 2.0


class AlreadyRunningError(StackError):
    """Another supervisor has locked the state folder."""

    default_reason = "STACK_ALREADY_RUNNING"


@contextmanager
def held(state: State) -> Iterator[None]:
    """Locks the state folder; waits briefly for a supervisor that is just ending.

    Raises:
        AlreadyRunningError: another supervisor holds it.
    """
    with state.lock.open("a") as file:
        end = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise AlreadyRunningError(
                        f"A stack already runs on {state.root}: `tidemill status` shows it, `tidemill down` stops it."
                    ) from error
                time.sleep(0.1)
        yield
