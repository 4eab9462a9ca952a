"""A small disk that a test can fill and free."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_BLOCK = bytes(1 << 16)


class SmallDisk:
    """A file system of its own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Takes all of its space, to the last byte."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(_BLOCK)

    def free(self) -> None:
        """Gives the space back."""
        self._ballast.unlink()


class _RefusedWrites(SmallDisk):
    """For users that may not mount: the state is refused as a full disk refuses it, and the ballast is a mark."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder)
        self._patch = monkeypatch

    def fill(self) -> None:
        def refuse(path: Path, _text: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        self._patch.setattr("infra.stack.state.write_atomically", refuse)
        self._ballast.touch()

    def free(self) -> None:
        self._patch.undo()
        super().free()


@contextmanager
def small_disk(folder: Path, megabytes: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    """A tmpfs mounted on `folder`, which is made; for a user that may not mount, refused writes of the state."""
    folder.mkdir(parents=True)
    mounted = os.geteuid() == 0 and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tidemill-test", str(folder)],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield SmallDisk(folder) if mounted else _RefusedWrites(folder, monkeypatch)
    finally:
        if mounted:
            # Lazily: what a failed test left running may still hold it.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
