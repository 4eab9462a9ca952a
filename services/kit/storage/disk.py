"""Free space of a disk, and the reserve below which no new data is accepted.

A full disk takes down the broker and the databases; a nearly full one still has room to finish accepted work. So
accepting stops first, and resumes by itself when there is room again.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from services.kit.errors import ResourceExhaustedError

logger = logging.getLogger(__name__)

_GIB = 2**30
_NOTHING = 2**20
"""Bytes with which nothing useful can be written."""
_LOOK_S = 1.0
_RETRY_S = 15.0


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The disk below a folder; bytes."""

    folder: Path
    total: int
    free: int
    reserve: int
    """Below this, no new data is accepted."""

    @property
    def low(self) -> bool:
        """Whether free space is below the reserve."""
        return self.free < self.reserve

    @property
    def scarce(self) -> bool:
        """Whether it soon will be."""
        return self.free < 2 * self.reserve

    @property
    def reason(self) -> str:
        """What a write or new work is refused with: `DISK_FULL`, `DISK_LOW`, or empty."""
        if self.free < _NOTHING:
            return "DISK_FULL"
        return "DISK_LOW" if self.low else ""

    def __str__(self) -> str:
        return (
            f"{_readable(self.free)} of {_readable(self.total)} are free at {self.folder}, "
            f"{_readable(self.reserve)} of them in reserve"
        )


def default_reserve(total: int) -> int:
    """2 % of the disk, at least 1 and at most 10 GiB, but never more than a tenth of a small disk. Bytes."""
    return min(max(_GIB, total // 50), 10 * _GIB, total // 10)


def disk_space(folder: Path, reserve: int | None = None) -> DiskSpace:
    """Measures the disk of a folder, or of its nearest existing parent.

    Args:
        folder: where files will be written.
        reserve: bytes; `default_reserve` when None.

    Raises:
        OSError: the disk does not respond.
    """
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    usage = shutil.disk_usage(existing)
    return DiskSpace(folder, usage.total, usage.free, default_reserve(usage.total) if reserve is None else reserve)


class DiskGuard:
    """Refuses new work while free space is below the reserve. Thread-safe."""

    def __init__(self, folder: Path, reserve: int | None = None) -> None:
        self._folder = folder
        self._reserve = reserve
        self._lock = threading.Lock()
        self._space = disk_space(folder, reserve)
        self._looked = time.monotonic()
        self._note(None)

    def look(self) -> DiskSpace:
        """The disk, measured within the last second."""
        with self._lock:
            if time.monotonic() - self._looked > _LOOK_S:
                before, self._space = self._space, disk_space(self._folder, self._reserve)
                self._looked = time.monotonic()
                self._note(before)
            return self._space

    def check(self) -> None:
        """Returns if there is room.

        Raises:
            ResourceExhaustedError: there is none; new data is accepted again when space is freed.
        """
        space = self.look()
        if space.low:
            raise ResourceExhaustedError(
                f"The disk is nearly full, so no new data is accepted: {space}. Free some space; new data is then "
                "accepted again.",
                reason="DISK_LOW",
                metadata={"path": str(space.folder), "free": str(space.free), "reserve": str(space.reserve)},
                retry_after_s=_RETRY_S,
            )

    def _note(self, before: DiskSpace | None) -> None:
        now = self._space
        if now.low and not (before and before.low):
            logger.error("the disk is nearly full, new records are refused: %s", now)
        elif now.scarce and not (before and before.scarce):
            logger.warning("the disk will be full soon: %s", now)
        elif before and before.low and not now.low:
            logger.info("the disk has room again, records are accepted: %s", now)


def _readable(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB // 10 else f"{size / 2**20:.1f} MiB"
