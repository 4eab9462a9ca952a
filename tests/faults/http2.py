"""A minimal HTTP/2 client (RFC 9113), to send frames that gRPC's own clients would never send."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Mapping

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_INITIAL_WINDOW = 65_535


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


class UnfinishedMessages:
    """One connection whose calls each send a part of a message, and never the rest."""

    def __init__(self, port: int, path: str, key: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
        self._fields = fields(
            {
                ":method": b"POST",
                ":scheme": b"http",
                ":path": path.encode(),
                ":authority": b"localhost",
                "te": b"trailers",
                "content-type": b"application/grpc",
                "x-api-key": key.encode(),
            }
        )
        self._rest: dict[int, int] = {}
        self._windows: dict[int, int] = {0: _INITIAL_WINDOW}
        self._initial, self._largest = _INITIAL_WINDOW, 16_384
        self._unread = b""
        self.ended: set[int] = set()
        """Streams that the server has ended."""

    def call(self, size: int) -> int:
        """Begins a call whose message has `size` bytes, of which all but the last will be sent; returns its stream."""
        stream = 1 + 2 * len(self._rest)
        self._windows[stream] = self._initial
        self._socket.sendall(frame(HEADERS, 4, stream, self._fields))
        self._send(stream, b"\0" + struct.pack(">I", size))
        self._rest[stream] = size - 1
        return stream

    def send_all(self, silence_s: float) -> int:
        """Sends as much as the server lets it, until nothing has moved for that long.

        Returns:
            Bytes of messages that the server has taken.
        """
        taken, waiting = 0, 0.0
        while waiting < silence_s:
            moved = 0
            for stream, rest in list(self._rest.items()):
                size = min(rest, self._largest, self._windows[0], self._windows[stream])
                if size > 0 and stream not in self.ended:
                    self._send(stream, b"x" * size)
                    self._rest[stream] -= size
                    moved += size
            taken += moved
            waiting = 0.0 if self._read(0.0 if moved else 0.2) or moved else waiting + 0.2
        return taken

    def close(self) -> None:
        self._socket.close()

    def _send(self, stream: int, data: bytes) -> None:
        self._socket.sendall(frame(DATA, 0, stream, data))
        self._windows[0] -= len(data)
        self._windows[stream] -= len(data)

    def _read(self, wait_s: float) -> bool:
        """Follows what the server has sent; false if there was nothing."""
        if not select.select([self._socket], [], [], wait_s)[0]:
            return False
        self._unread += self._socket.recv(1 << 20)
        while len(self._unread) >= 9 and len(self._unread) >= 9 + int.from_bytes(self._unread[:3], "big"):
            end = 9 + int.from_bytes(self._unread[:3], "big")
            kind, flags, stream = self._unread[3], self._unread[4], int.from_bytes(self._unread[5:9], "big")
            self._follow(kind, flags, stream, self._unread[9:end])
            self._unread = self._unread[end:]
        return True

    def _follow(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE and stream in self._windows:
            self._windows[stream] += int.from_bytes(payload, "big") & 0x7FFFFFFF
        elif kind == SETTINGS and not flags & 1:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == 4:  # SETTINGS_INITIAL_WINDOW_SIZE
                    for each in self._windows.keys() - {0}:
                        self._windows[each] += value - self._initial
                    self._initial = value
            self._socket.sendall(frame(SETTINGS, 1, 0, b""))
        elif kind == PING and not flags & 1:
            self._socket.sendall(frame(PING, 1, 0, payload))
        elif (kind == HEADERS and flags & 1) or kind == RST_STREAM:
            self.ended.add(stream)
