"""Folders that no other user can enter, and files that no other user can read."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from pathlib import Path

from infra.stack.errors import StackError
from services.kit.whole_files import OWNER_ONLY, create_text

UMASK = 0o077
"""Makes all files that this process creates private to its user."""


def place_secret(file: Path) -> str:
    """The secret in a file that only this user can read; created from 32 random bytes if missing.

    Processes that create it at the same time all get the same.
    """
    if not file.exists():
        create_text(file, secrets.token_hex(32), OWNER_ONLY)
    return file.read_text(encoding="utf-8").strip()


def empty_folder(folder: Path) -> Path:
    """Creates a folder of mode 0700 for temporary files; removes what an earlier process has left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def own_folder(folder: Path) -> Path:
    """Like `private_folder`, below a folder in which other users may write and could put a link or their own folder.

    Raises:
        StackError: what is there is not a folder of this user.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise StackError(f"{folder} is not a folder of this user: remove it, or set TMPDIR to a folder of your own.")
    return private_folder(folder)


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
