"""Files of a folder that a process is still writing to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def entries_below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every entry and what it is itself (a link is not followed); one that vanishes meanwhile is left out."""
    for parent, folders, names in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *names)):
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue
            yield path, found
