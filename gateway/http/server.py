"""Runs the HTTP server as one task of the process's event loop, beside the gRPC server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from gateway.http.limits import HttpLimits
from gateway.http.protocol import limited_protocol
from services.kit.errors import FailedPreconditionError

_DRAIN_S = 10


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to the kit's runtime, which stops both servers."""
        yield


class HttpServer:
    """An HTTP server on a port that is open from the start, so that a taken one is told at once."""

    def __init__(self, app: Any, address: str, limits: HttpLimits, refused: Callable[[str], None]) -> None:
        """Args:
        app: the ASGI application.
        address: `host:port`; port 0 takes any.
        limits: of every connection.
        refused: is told the code of every request that broke a limit.

        Raises:
            FailedPreconditionError: the port is taken or the address is not this machine's.
        """
        host, _, port = address.rpartition(":")
        self._socket = _listen(host.strip("[]") or "127.0.0.1", int(port), address)
        self.port: int = self._socket.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                app,
                http=limited_protocol(limits, refused),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                # Longer than what clients and proxies keep a connection for, so that they close first.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=_DRAIN_S,
            )
        )

    async def serve(self) -> None:
        """Serves until it is cancelled; then answers what is in hand and ends."""
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            self._server.should_exit = True
            await serving
            raise


def _listen(host: str, port: int, address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise FailedPreconditionError(
            f"Cannot listen on {address}: {error.strerror}. Stop the other process or set TIDEMILL_HTTP_BIND to "
            "another port.",
            reason="PORT_IN_USE",
            metadata={"address": address},
        ) from error
    return listener
