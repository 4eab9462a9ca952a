"""A TCP proxy that a test can cut, between the service and Elasticsearch."""

from __future__ import annotations

import contextlib
import socket
import threading


class CuttableProxy:
    """Listens on a free port of this machine and passes everything on, until it is cut."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._connected = True
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """`host:port` to connect to."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Breaks all connections, and each new one at once."""
        with self._lock:
            self._connected = False
            for each in self._open:
                _end(each)
            self._open.clear()

    def restore(self) -> None:
        """Lets connections pass again."""
        with self._lock:
            self._connected = True

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if not self._connected:
                    near.close()
                    continue
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        _end(source)
        _end(sink)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
