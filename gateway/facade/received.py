"""How many bytes each connection of this process has received: what gRPC's core does not say.

Linux counts them for each TCP connection (tcpi_bytes_received of TCP_INFO, tcp(7)).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection
from urllib.parse import unquote

# Of struct tcp_info (linux/tcp.h): eight bytes, 24 words, then pacing rates and acknowledged bytes.
_BYTES_RECEIVED = struct.Struct("=8x96x24xQ")


def bytes_received(peers: Collection[str]) -> dict[str, int]:
    """Bytes from each of these peers since its connection was opened; connections that are closed are left out.

    Args:
        peers: as gRPC names them, such as `ipv4:192.0.2.1:5000`.
    """
    wanted = {_plain(peer): peer for peer in peers}
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - thousands of them
        try:
            connection = socket.socket(fileno=int(name))
        except OSError:  # no socket, or closed meanwhile
            continue
        try:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                host, port, *_ = connection.getpeername()
                if (peer := wanted.get(f"{host.removeprefix('::ffff:')}:{port}")) is not None:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
                    if len(info) == _BYTES_RECEIVED.size:
                        (found[peer],) = _BYTES_RECEIVED.unpack(info)
        except OSError:  # it listens, or is closed
            continue
        finally:
            connection.detach()
    return found


def _plain(peer: str) -> str:
    """`host:port` of gRPC's name, an IPv6 address without brackets."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return f"{host.strip('[]').removeprefix('::ffff:')}:{port}"
