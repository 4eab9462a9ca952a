"""How much of the processor a worker leaves to others."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_AUTOGROUP = Path("/proc/self/autogroup")


def lower_priority(niceness: int) -> None:
    """Lets other processes have the processor first; where it is free, nothing gets slower.

    Linux shares a processor among sessions first and only within a session by the niceness of its processes
    (sched(7), autogroup), so that of the session is set, too, if it is this process's own.

    Args:
        niceness: 0, as all others, to 19, only what they leave.
    """
    if not niceness:
        return
    os.nice(niceness)
    if os.getsid(0) == os.getpid():
        # Not every kernel has such groups, and a container may not let its processes write here.
        with contextlib.suppress(OSError):
            _AUTOGROUP.write_text(str(niceness), encoding="ascii")
