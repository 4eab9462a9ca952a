"""Another user of this machine, who tries to get in.

Only root can become another user. So as root a test really makes the attempt; otherwise it checks the owner and the
mode of each folder on the path, by which the kernel decides.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

STRANGER = 64999
"""A user id that owns nothing."""


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that everyone may enter, so that what a test finds closed was closed by the mesh and not by pytest."""
    with tempfile.TemporaryDirectory(prefix="tidemill-open-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def as_stranger(attempt: Callable[[], str]) -> str:
    """What `attempt` returns in a process of another user, or the name of the error that it raised. Root only."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            result = attempt()
        except BaseException as error:
            result = type(error).__name__
        os.write(writing, result.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        result = pipe.read().decode()
    os.waitpid(child, 0)
    return result


def connects(path: Path) -> bool:
    """Whether another user can open this Unix socket."""

    def attempt() -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        return "connected"

    if os.geteuid() == 0:
        return as_stranger(attempt) == "connected"
    return open_to_others(path)


def reads(path: Path) -> bool:
    """Whether another user can read this file."""
    return bool(read_by_others([path]))


def read_by_others(paths: Iterable[Path]) -> list[Path]:
    """The files that another user can read; one process tries them all."""
    if os.geteuid() != 0:
        return [path for path in paths if open_to_others(path)]
    found = as_stranger(lambda: json.dumps([str(path) for path in paths if _opens(path)]))
    return [Path(name) for name in json.loads(found)]


def _opens(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError:
        return False
    return True


def open_to_others(path: Path) -> bool:
    """Whether the modes of a file and of all folders above it let another user in."""
    if not path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWOTH):
        return False
    return all(folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH) for folder in path.parents)
