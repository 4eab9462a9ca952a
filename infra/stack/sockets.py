"""The folder of a mesh's Unix sockets, closed to all other users, so that they cannot connect.

Linux allows 107 bytes for the path of a socket. Where the state folder's own path is too long, the folder lies in the
user's run-time folder instead (XDG_RUNTIME_DIR), and without one under /tmp.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from infra.stack.layout import State
from infra.stack.private import own_folder

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
        return own_folder(folder)
    name = hashlib.sha256(os.fsencode(state.root)).hexdigest()[:16]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and _fits(Path(runtime) / "tidemill" / name):
        return own_folder(own_folder(Path(runtime) / "tidemill") / name)
    return own_folder(own_folder(Path(tempfile.gettempdir()) / f"tidemill-{os.geteuid()}") / name)


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder)) + 1 + LONGEST_NAME <= LONGEST_PATH
