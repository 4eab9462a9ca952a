"""Files that appear whole: a reader sees the old content or the new one, never a part.

Threads and processes may replace the same file at the same time; the last one wins.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

OWNER_ONLY = 0o600
"""The mode of a file that only its owner may read or write."""


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A file to write; it takes the place of `path` when the block ends, and is removed if the block raises.

    Its content is on the disk before it takes the place, so that no crash of the machine leaves an empty file.

    Args:
        path: in a folder that exists.
        mode: of the file, less the process's umask.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    # Not the process's id: two threads have the same one, and so has a process that was killed before.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        # A leftover would keep a full disk full.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Replaces a file by this text in UTF-8; see `replacing`."""
    with replacing(path, mode) as file:
        file.write(text.encode())


def create_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Creates a file with this text in UTF-8, unless there is one: of those that do it at the same time, one does.

    It is on the disk, with its name, when this returns.

    Args:
        path: in a folder that exists.
        text: its content.
        mode: of the file, less the process's umask.

    Raises:
        OSError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    replace_text(draft, text, mode)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
