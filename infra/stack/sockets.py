"""The folder of a mesh's Unix sockets, closed to all other users: who cannot enter it cannot connect.

Linux allows 107 bytes for the path of a socket. Where the state folder's own path is too long, the folder lies in the
user's run-time folder instead (XDG_RUNTIME_DIR), and without one under /tmp.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from infra.stack.errors import StackError
from infra.stack.layout import State
from infra.stack.private import private_folder

LONGEST_PATH = 107
"""Bytes of a socket's path (`sun_path` in sys/un.h, without the zero at its end)."""
LONGEST_NAME = 24
"""Bytes of a socket's name in the folder."""


def place_sockets(state: State) -> Path:
    """Creates the folder for the sockets of this mesh, or checks the one that exists.

    Raises:
        StackError: someone else owns it or can enter it.
    """
    folder = state.root / "sockets"
    if _fits(folder):
        return _private(folder)
    name = hashlib.sha256(os.fsencode(state.root)).hexdigest()[:16]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and _fits(Path(runtime) / "tidemill" / name):
        return _private(_private(Path(runtime) / "tidemill") / name)
    return _private(_private(Path(tempfile.gettempdir()) / f"tidemill-{os.geteuid()}") / name)


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder)) + 1 + LONGEST_NAME <= LONGEST_PATH


def _private(folder: Path) -> Path:
    """Stricter than `private_folder`: above it others may write, who could put a link or a folder of theirs here."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise StackError(f"{folder} is not a folder of this user: remove it, or choose a shorter TIDEMILL_STATE.")
    return private_folder(folder)
