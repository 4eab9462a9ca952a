"""Temporary files on the disk that is watched, whichever library writes them.

By default they go to TMPDIR, mostly `/tmp`: often another disk, or memory, and no guard sees when it is full.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.kit.ids import new_id
from services.kit.storage.file_lock import locked

logger = logging.getLogger(__name__)

FOLDER = "tmp"
"""Below the folder of the mesh."""
_VARIABLE = "TMPDIR"
_LOCK = ".lock"


@contextmanager
def temporary_files(state: Path, name: str) -> Iterator[None]:
    """Within the block, temporary files of this process and its children lie in a folder of its own below `state`.

    The folder is removed at the end; what a killed process has left is removed by the next one. If it cannot be
    created, temporary files stay where they are by default, with a warning in the log.

    Args:
        state: folder of the mesh, whose disk is watched.
        name: of this process, as the beginning of its folder's name.
    """
    below = state / FOLDER
    try:
        own, lock = _claim(below, name)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): temporary files are in %s, whose free space is not watched",
            below,
            error.strerror or error,
            tempfile.gettempdir(),
        )
        yield
        return
    before = tempfile.tempdir, os.environ.get(_VARIABLE)
    # The module remembers the folder that it found first.
    tempfile.tempdir = os.environ[_VARIABLE] = str(own)
    try:
        yield
    finally:
        tempfile.tempdir = before[0]
        os.environ.pop(_VARIABLE)
        if before[1] is not None:
            os.environ[_VARIABLE] = before[1]
        shutil.rmtree(own, ignore_errors=True)
        os.close(lock)


def _claim(below: Path, name: str) -> tuple[Path, int]:
    """Creates a folder that is locked as long as this process lives, and removes those whose process has ended."""
    below.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(below / _LOCK):
        for left in below.iterdir():
            if left.is_dir() and not left.is_symlink() and _is_left(left):
                shutil.rmtree(left, ignore_errors=True)
        own = below / f"{name}-{new_id()}"
        own.mkdir(mode=0o700)
        return own, _lock(own / _LOCK)


def _is_left(folder: Path) -> bool:
    try:
        os.close(_lock(folder / _LOCK))
    except OSError:
        return False
    return True


def _lock(file: Path) -> int:
    """Locks a file until the handle is closed.

    Raises:
        OSError: another process has locked it, or it cannot be opened.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle
