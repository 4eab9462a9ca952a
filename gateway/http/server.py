"""Runs the HTTP server as a task of the process's event loop, next to the gRPC server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from gateway.http.protocol import limited_protocol
from gateway.limits import HttpLimits
from services.kit.errors import FailedPreconditionError

_DRAIN_S = 10


class _Server(uvicorn.Server):
    """Serves one socket that is open already."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, handshake_s: float) -> None:
        super().__init__(config)
        self._listener = listener
        self._handshake_s = handshake_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Like uvicorn's, with a shorter limit for TLS handshakes: asyncio's is a minute, and no other applies yet."""
        config = self.config

        def connection() -> asyncio.Protocol:
            made: Any = config.http_protocol_class
            protocol: asyncio.Protocol = made(config=config, server_state=self.server_state, app_state={})
            return protocol

        self.servers = [
            await asyncio.get_running_loop().create_server(
                connection,
                sock=self._listener,
                ssl=config.ssl,
                ssl_handshake_timeout=self._handshake_s if config.ssl is not None else None,
                backlog=config.backlog,
            )
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to the kit's runtime, which stops both servers."""
        yield


class HttpServer:
    """An HTTP server on a port that is open from the start, so that a port in use is reported at once."""

    def __init__(
        self,
        app: Any,
        address: str,
        limits: HttpLimits,
        refused: Callable[[str], None],
        tls: ssl.SSLContext | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """Args:
        app: the ASGI application.
        address: `host:port`; port 0 takes any.
        limits: of every connection.
        refused: called with the code of every request that broke a limit.
        tls: of every connection; None for plain text.
        shared: whether other processes of this user listen on the port as well (SO_REUSEPORT).

        Raises:
            FailedPreconditionError: the port is taken, or the address does not belong to this machine.
        """
        host, _, port = address.rpartition(":")
        self._socket = _listen(host.strip("[]") or "127.0.0.1", int(port), address, shared)
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
                # Longer than clients and proxies keep a connection, so that they close it first.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=_DRAIN_S,
                ssl_context_factory=(lambda _config, _default: tls) if tls is not None else None,
            ),
            self._socket,
            limits.header_timeout_s,
        )

    async def serve(self) -> None:
        """Serves until cancelled; then finishes current requests."""
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            self._server.should_exit = True
            await serving
            raise


def _listen(host: str, port: int, address: str, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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
