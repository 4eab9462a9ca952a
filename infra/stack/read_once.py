"""Files that a child reads only when it starts, such as Triton its certificate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class ReadOnce:
    """Whether files have changed since a program has read them."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Create it before the program starts."""
        self._files = files
        self._read = self._last = self._marks()

    def changed(self) -> bool:
        """Whether they have, and not since the last call: a certificate and its key are replaced one by one."""
        before, self._last = self._last, self._marks()
        return self._read != self._last == before

    def __str__(self) -> str:
        return ", ".join(str(file) for file in self._files)

    def _marks(self) -> list[tuple[int, int] | None]:
        marks: list[tuple[int, int] | None] = []
        for file in self._files:
            try:
                found = file.stat()
            except OSError:
                marks.append(None)
            else:
                marks.append((found.st_ino, found.st_mtime_ns))
        return marks
