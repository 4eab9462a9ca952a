"""Folders that no other user can enter, and files that no other user can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from infra.stack.errors import StackError

UMASK = 0o077
"""Whatever a process of the mesh creates is its user's alone."""


def private_folder(folder: Path) -> Path:
    """Creates a folder of mode 0700; one that exists is closed to others.

    Raises:
        StackError: it is shared by all users, such as /tmp, or someone else's.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_mode & stat.S_ISVTX or os.geteuid() not in (0, found.st_uid):
        raise StackError(f"{folder} is shared with other users: set TIDEMILL_STATE to a private folder.")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
    return folder
