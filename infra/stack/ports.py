"""Finds ports that no one listens on, and keeps two meshes of one machine from choosing the same."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Mapping

from infra.stack.errors import StackError

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
    """Ports reserved by this process, for whichever user it runs.

    A reservation is a socket that is bound to a name in Linux's abstract namespace. It needs no folder that users
    share, and the kernel releases it when the process ends, however it ends.
    """

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}

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
        reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            reservation.bind(f"\0tidemill-port-{port}")
        except OSError:
            reservation.close()
            return False
        if not is_free(port):
            reservation.close()
            return False
        self._held[port] = reservation
        return True

    def release(self) -> None:
        """Releases all ports."""
        for reservation in self._held.values():
            reservation.close()
        self._held.clear()
