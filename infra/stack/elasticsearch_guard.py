"""A proxy for a node without security: passes on requests with the right password (HTTP Basic).

`python -m infra.stack.elasticsearch_guard FD PORT`: answers on the listening socket FD, which belongs to the machine's
network, and asks the node at PORT of the private network that both live in (see `launch.py`). Bodies are streamed,
never kept.
"""

from __future__ import annotations

import hmac
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import BasicAuth, web
from yarl import URL

from infra.stack.addresses import HOST
from infra.stack.elasticsearch import SECRET

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "host", "authorization"})


class Guard:
    """Passes requests on to the node."""

    def __init__(self, secret: str, port: int) -> None:
        name, _, password = secret.partition(":")
        self._expected = BasicAuth(name, password).encode().encode()
        self._node = f"http://{HOST}:{port}"
        self._session: aiohttp.ClientSession | None = None

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Keeps the connections to the node open while the application runs."""
        connector = aiohttp.TCPConnector(limit=64)
        async with aiohttp.ClientSession(
            connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None), trust_env=False
        ) as self._session:
            yield

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers one request: 401 without the password, 503 while the node is unavailable."""
        given = request.headers.get("Authorization", "").encode(errors="replace")
        if not hmac.compare_digest(given, self._expected):
            return web.json_response(
                {"error": {"type": "security_exception", "reason": "the password is missing or wrong"}, "status": 401},
                status=401,
                headers={"WWW-Authenticate": 'Basic realm="tidemill"'},
            )
        assert self._session is not None
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP_BY_HOP}
        try:
            async with self._session.request(
                request.method,
                URL(self._node + request.raw_path, encoded=True),
                headers=headers,
                data=request.content if request.can_read_body else None,
                allow_redirects=False,
            ) as answer:
                kept = [(key, value) for key, value in answer.headers.items() if key.lower() not in _HOP_BY_HOP]
                response = web.StreamResponse(status=answer.status, headers=dict(kept))
                await response.prepare(request)
                async for part in answer.content.iter_any():
                    await response.write(part)
                await response.write_eof()
                return response
        except aiohttp.ClientConnectorError:
            return web.json_response(
                {"error": {"type": "unavailable", "reason": "the node does not answer"}, "status": 503}, status=503
            )


def main(arguments: list[str]) -> None:
    """Serves until it is killed, which happens when the node ends."""
    listener, port = socket.socket(fileno=int(arguments[0])), int(arguments[1])
    guard = Guard(os.environ.pop(SECRET), port)
    logging.basicConfig(level=logging.WARNING)
    app = web.Application()
    app.cleanup_ctx.append(guard.run)
    app.router.add_route("*", "/{path:.*}", guard.handle)
    web.run_app(app, sock=listener, print=None, access_log=None, handler_cancellation=True)


if __name__ == "__main__":
    main(sys.argv[1:])
