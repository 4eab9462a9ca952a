"""How the process of a run asks the system for memory.

glibc raises its threshold for mapped blocks to 32 MiB as tensors are freed. From then on tensors of a few megabytes are
cut out of one heap, in whose gaps the next ones do not fit, and which is never given back. A fixed threshold maps each
block from 1 MiB on, so that a freed tensor is free at once; but the system then clears each one before its first use,
which takes as long again as the step itself (docs/benchmarks.md). So a training begins with the threshold, for which
its memory was planned, and gives it up where there is room for the gaps.
"""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable, Mapping
from pathlib import Path

_MAPPED_FROM, _MAPPED_AT_MOST_FROM = 1 << 20, 32 << 20
_KEPT = 256 << 20
# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

ALLOCATOR: Mapping[str, str] = {"MALLOC_MMAP_THRESHOLD_": str(_MAPPED_FROM)}
"""Environment in which a process that trains is started."""

_GROUP = Path("/sys/fs/cgroup")


class Allocation:
    """Lets tensors come from a heap as long as the machine has room for it."""

    def __init__(self, room: float = 1.0, free: Callable[[], int] | None = None) -> None:
        """Args:
        room: what must be free beside the process, as a share of the most memory that it has had so far; heaps were
            up to 0.8 of it larger (`make bench-plan`). Infinity keeps the threshold.
        free: bytes that are free; of this machine, or of its container, when None.
        """
        self._room, self._free = room, free or free_memory
        self._heap = False

    @property
    def heap(self) -> bool:
        """Whether tensors come from the heap."""
        return self._heap

    def after_step(self) -> None:
        """Looks at the memory, and chooses for the next step."""
        needed = self._room * peak_memory()
        free = self._free()
        if not self._heap and free >= needed:
            self._heap = _set(_MAPPED_AT_MOST_FROM, _KEPT)
        elif self._heap and free < needed / 4:
            # Another process has taken what was free.
            self._heap = False
            _set(_MAPPED_FROM, 0)
            _library().malloc_trim(0)


def peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory() -> int:
    """Bytes that the machine can give without swapping, or the container if that has less."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    try:
        limit, used = (int((_GROUP / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        # No control group, or one without a limit ("max").
        return free
    return min(free, limit - used)


def _set(mapped_from: int, kept: int) -> bool:
    """Sets glibc's thresholds; False where the C library has none."""
    library = _library()
    if not hasattr(library, "mallopt"):
        return False
    return bool(library.mallopt(_M_MMAP_THRESHOLD, mapped_from) and library.mallopt(_M_TRIM_THRESHOLD, kept))


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
