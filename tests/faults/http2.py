"""A minimal HTTP/2 client (RFC 9113), to send frames that gRPC's own clients would never send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 4, 6, 7, 9


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame (4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def fields(given: Mapping[str, bytes]) -> bytes:
    """Header fields as literals that are not indexed (RFC 7541, 6.2.2); names and values of up to 126 bytes."""
    return b"".join(b"\0" + bytes((len(k),)) + k.encode() + bytes((len(v),)) + v for k, v in given.items())


def kinds(connection: socket.socket) -> list[int]:
    """The kinds of the frames that arrive until the peer is silent for the socket's timeout."""
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except TimeoutError:
        pass
    found = []
    while len(data) >= 9:
        found.append(data[3])
        data = data[9 + int.from_bytes(data[:3], "big") :]
    return found
