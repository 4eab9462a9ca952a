"""The TCP connections of this process, of which gRPC's core says little: how much they received, and whose they are.

The sockets belong to gRPC's core, yet the process can look at them and end them. Linux counts what each has received
(tcpi_bytes_received of TCP_INFO, tcp(7)).
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from urllib.parse import unquote

Peer = tuple[str, int]
"""Address and port of the other end."""

# Of struct tcp_info (linux/tcp.h): eight bytes, 24 words, then pacing rates and acknowledged bytes.
_BYTES_RECEIVED = struct.Struct("=8x96x24xQ")
_V4_IN_V6 = "::ffff:"
_LOOK_S = 1.0


def bytes_received(peers: Collection[str]) -> dict[str, int]:
    """Bytes from each of these peers since its connection was opened; connections that are closed are left out.

    Args:
        peers: as gRPC names them, such as `ipv4:192.0.2.1:5000`.
    """
    wanted = {_peer_of(peer): peer for peer in peers}
    found = {}
    for connection in _open_sockets():
        peer = wanted.get(_peer(connection) or ("", 0))
        if peer is None:
            continue
        try:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
        except OSError:  # closed meanwhile
            continue
        if len(info) == _BYTES_RECEIVED.size:
            (found[peer],) = _BYTES_RECEIVED.unpack(info)
    return found


class ClientConnections:
    """Ends what one address has too many of, the newest first, at all ports on which this process listens but some."""

    def __init__(self, most: int, spared: Collection[int], refused: Callable[[str], None]) -> None:
        """Args:
        most: connections that one address may have.
        spared: ports of servers that count for themselves.
        refused: called with a reason for each connection that is ended.
        """
        self._most, self._spared, self._refused = most, frozenset(spared), refused
        self._known: dict[Peer, int] = {}
        """Connections in the order in which they were first seen."""
        self._seen = 0

    async def run(self) -> None:
        """Looks again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Looks once."""
        by_address: dict[str, list[Peer]] = defaultdict(list)
        for peer in self._inbound():
            by_address[peer[0]].append(peer)
            if peer not in self._known:
                self._seen += 1
                self._known[peer] = self._seen
        self._known = {peer: self._known[peer] for peers in by_address.values() for peer in peers}
        surplus = {
            peer for peers in by_address.values() for peer in sorted(peers, key=self._known.__getitem__)[self._most :]
        }
        if surplus:
            self._end(surplus)

    def _inbound(self) -> list[Peer]:
        ports: set[int] = set()
        found: list[tuple[int, Peer]] = []
        for connection in _open_sockets():
            try:
                port = connection.getsockname()[1]
                if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    ports.add(port)
                elif (peer := _peer(connection)) is not None:
                    found.append((port, peer))
            except OSError:  # closed meanwhile
                continue
        return [peer for port, peer in found if port in ports - self._spared]

    def _end(self, surplus: Collection[Peer]) -> None:
        for connection in _open_sockets():
            if _peer(connection) not in surplus:
                continue
            try:
                # gRPC's core may close its own meanwhile, and another connection get the number.
                with connection.dup() as own:
                    if _peer(own) in surplus:
                        own.shutdown(socket.SHUT_RDWR)
                        self._refused("too_many_connections")
            except OSError:
                continue


def _open_sockets() -> Iterator[socket.socket]:
    """The TCP sockets of this process; each is to be used before the next one is taken, and may be closed any time."""
    try:
        names = os.listdir("/proc/self/fd")  # noqa: PTH208 - thousands of them
    except OSError:  # this process may open no more files; the next look will do
        return
    for name in names:
        try:
            found = socket.socket(fileno=int(name))
        except OSError:  # no socket, or closed meanwhile
            continue
        try:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                yield found
        finally:
            found.detach()


def _peer(connection: socket.socket) -> Peer | None:
    """The other end; None of a socket that listens or is closed."""
    try:
        host, port, *_ = connection.getpeername()
    except OSError:
        return None
    return str(host).removeprefix(_V4_IN_V6), int(port)


def _peer_of(name: str) -> Peer:
    """The other end that gRPC names so."""
    host, _, port = unquote(name).partition(":")[2].rpartition(":")
    return host.strip("[]").removeprefix(_V4_IN_V6), int(port) if port.isdecimal() else 0
