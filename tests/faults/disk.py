"""A small disk that a test can fill and free."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_BLOCK = bytes(1 << 16)
_MEBIBYTE = 1 << 20


class SmallDisk:
    """A file system of its own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Uses all of its space, to the last byte."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(_BLOCK)

    def free(self) -> None:
        """Gives the space back."""
        self._ballast.unlink()


class _RefusedWrites(SmallDisk):
    """For users who may not mount: simulates a full disk by refusing writes of the state while a file exists."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder)
        self._patch = monkeypatch

    def fill(self) -> None:
        def refuse(path: Path, _text: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        self._patch.setattr("infra.stack.state.replace_text", refuse)
        self._ballast.touch()

    def free(self) -> None:
        self._patch.undo()
        super().free()


@contextmanager
def small_disk(folder: Path, megabytes: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    """A tmpfs mounted on `folder`, which is created; for users who may not mount, refused writes of the state."""
    folder.mkdir(parents=True)
    mounted = os.geteuid() == 0 and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tidemill-test", str(folder)],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield SmallDisk(folder) if mounted else _RefusedWrites(folder, monkeypatch)
    finally:
        if mounted:
            # Lazily, since processes that a failed test left may still use it.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass(frozen=True, slots=True)
class WatchedDisk:
    """A folder on a disk whose free space can be brought below the reserve, as all processes see it."""

    folder: Path
    reserve: int
    _ballast_bytes: int

    def make_low(self) -> None:
        """Brings the free space below the reserve."""
        with (self.folder / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self._ballast_bytes)

    def free(self) -> None:
        """Gives the space back."""
        (self.folder / "ballast").unlink()


@contextmanager
def watched_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedDisk]:
    """A tmpfs of its own on `folder`; a folder on the machine's for a user that may not mount."""
    with small_disk(folder, 64, monkeypatch) as small:
        if not isinstance(small, _RefusedWrites):
            yield WatchedDisk(folder, 32 * _MEBIBYTE, 40 * _MEBIBYTE)
            return
        with tempfile.TemporaryDirectory(dir="/dev/shm") as shared:
            free = shutil.disk_usage(shared).free
            yield WatchedDisk(Path(shared), free - 16 * _MEBIBYTE, 32 * _MEBIBYTE)
