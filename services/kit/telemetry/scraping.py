"""The port from which Prometheus reads a process's metrics, protected by a token."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from services.kit.errors import FailedPreconditionError

_SILENT_S = 10.0

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class ScrapeToken:
    """A token in a file, read again for each request, so that a new one takes effect at once."""

    def __init__(self, file: Path) -> None:
        """Reads it.

        Raises:
            FailedPreconditionError: the file cannot be read, or is empty.
        """
        self._file = file
        self._read()

    def admits(self, authorization: str) -> bool:
        """Whether a header `Authorization` carries it, as `Bearer TOKEN`."""
        try:
            expected = f"Bearer {self._read()}"
        except FailedPreconditionError:  # for example while the file is replaced
            return False
        return hmac.compare_digest(authorization.encode("utf-8", "replace"), expected.encode())

    def _read(self) -> str:
        try:
            token = self._file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise _unusable(self._file, f"cannot be read: {error}") from error
        if not token:
            raise _unusable(self._file, "is empty")
        return token


def _unusable(file: Path, why: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"TIDEMILL_METRICS_TOKEN_FILE: {file} {why}.", reason="METRICS_TOKEN")


def serve_metrics(address: str, registry: CollectorRegistry, token: ScrapeToken | None) -> None:
    """Serves metrics at `host:port` from threads of its own; 401 without the token, if one is set.

    Args:
        address: `host:port`.
        registry: of the metrics; answered as text or as OpenMetrics, whichever is asked for.
        token: what a reader must send.

    Raises:
        FailedPreconditionError: the port is taken, or the address does not belong to this machine.
    """
    host, _, port = address.rpartition(":")
    answer: Wsgi = make_wsgi_app(registry)
    app = answer if token is None else _guarded(answer, token)
    try:
        server = make_server(host or "127.0.0.1", int(port), app, _Server, _Handler)
    except OSError as error:
        raise FailedPreconditionError(
            f"Cannot listen on {address} for metrics: {error.strerror or error}. "
            "Stop the other process or set TIDEMILL_METRICS_BIND to another port.",
            reason="PORT_IN_USE",
            metadata={"address": address},
        ) from error
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def _guarded(answer: Wsgi, token: ScrapeToken) -> Wsgi:
    def ask(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if token.admits(environment.get("HTTP_AUTHORIZATION", "")):
            return answer(environment, start)
        start("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")])
        return [b"The token of the mesh's metrics is missing or wrong.\n"]

    return ask


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = _SILENT_S
    """Seconds until a silent connection is closed."""

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps a scrape every few seconds out of the log."""
