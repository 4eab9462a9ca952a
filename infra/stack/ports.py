"""Finds ports that no one listens on, and keeps two meshes of one user from choosing the same."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from infra.stack.errors import StackError
from infra.stack.private import own_folder

# Below the range from which Linux takes ports for outgoing connections, so that a child that restarts finds its own.
_FREE_RANGE = range(20000, 32000)


def is_free(port: int) -> bool:
    """Whether no one listens on `port` of the loopback interface."""
    with socket.socket() as probe:
        # The port of a server that just ended is free, even if old connections linger.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


class PortAllocator:
    """Ports reserved by this process: a lock file each, released when the process ends."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / f"tidemill-ports-{os.getuid()}"
        self._held: dict[int, int] = {}

    def assign(self, usual: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
        """Chooses a port for each use: the one it had before, else the usual one, else any free one.

        Raises:
            StackError: no port is free.
        """
        spare = random.sample(_FREE_RANGE, len(_FREE_RANGE))
        chosen: dict[str, int] = {}
        for use, port in usual.items():
            first = [before[use]] if use in before else []
            chosen[use] = self._first_free([*first, port, *spare])
        return chosen

    def _first_free(self, candidates: Iterable[int]) -> int:
        for port in candidates:
            if port not in self._held and self._reserve(port):
                return port
        raise StackError("No port between 20000 and 31999 is free on this machine: stop the processes that use them.")

    def _reserve(self, port: int) -> bool:
        own_folder(self._folder)
        handle = os.open(self._folder / str(port), os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        if not is_free(port):
            os.close(handle)
            return False
        self._held[port] = handle
        return True

    def release(self) -> None:
        """Releases all ports."""
        for port, handle in self._held.items():
            with contextlib.suppress(OSError):
                (self._folder / str(port)).unlink()
            os.close(handle)
        self._held.clear()
