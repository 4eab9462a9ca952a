"""The outermost layer of every HTTP request: server span, API key, metrics. Plain ASGI, no framework.

The response carries `traceparent` and `x-trace-id`, so that its receiver can run `tidemill trace ID`, and the caller's
own `x-request-id`, else the trace's id under that name, which clients of OpenAI's API show.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, StatusCode, Tracer, set_span_in_context
from starlette.requests import Request

from gateway.access import BACKGROUND, CALLER, FLEX, ROUTES, TIER, Caller, demand
from gateway.http.body import LEASE_KEY
from gateway.http.errors import CODE_KEY, code_of_status, error_response
from gateway.http.limits import BodyBudget
from gateway.keys.limiter import KeyLimiter
from gateway.keys.ring import KeyRing, key_text
from services.kit.errors import TidemillError
from services.kit.telemetry import schema
from services.kit.telemetry.metrics import RequestMetrics

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Probes and documentation need no key and are neither traced nor measured: probes would distort the figures.
_OPEN = frozenset({"/healthz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"})
# Scripts and styles of the documentation page.
_OPEN_BELOW = "/static-offline-docs/"
CONSOLE = "/console"
"""The console is below; it asks for a session instead of a key, and reads no body of strangers but a short form."""
# Open to whoever has the metrics token or, if none is set, calls from this machine; others need a key.
_METRICS = "/metrics"
# Characters of a path that a span keeps; a caller without a key may send 60 KB.
_MAX_PATH = 512
_MAX_REQUEST_ID = 128
_TIER = TIER.encode()
_LOOPBACK = frozenset({"127.0.0.1", "::1"})


def from_this_machine(scope: Scope) -> bool:
    """Whether the connection comes over the loopback interface. Behind a reverse proxy on this machine all do."""
    client = scope.get("client")
    return client is not None and client[0] in _LOOPBACK


async def check_role(request: Request) -> None:
    """Checks the role of a request, once its route is known and before its body is read.

    Raises:
        PermissionDeniedError: the caller's key lacks the role.
    """
    caller = CALLER.get()
    if caller is not None:
        method = "GET" if request.method == "HEAD" else request.method
        path = request.scope["route"].path
        demand(caller.key, ROUTES.get((method, path), frozenset()), f"{method} {path}")


class Door:
    """The outermost ASGI application."""

    def __init__(
        self,
        app: App,
        ring: KeyRing | None,
        limiter: KeyLimiter,
        metrics: RequestMetrics,
        tracer: Tracer,
        bodies: BodyBudget,
        console: App | None = None,
    ) -> None:
        """Args:
        app: the application inside.
        ring: the valid keys; None accepts every caller.
        limiter: the keys' limits, shared with the other door.
        metrics: of this process.
        tracer: creates the server spans.
        bodies: the memory of all current bodies.
        console: what answers below `/console`; without it those paths are as all others.
        """
        self._app = app
        self._console = console
        self._bodies = bodies
        self._ring = ring
        self._limiter = limiter
        self._metrics = metrics
        self._tracer = tracer

    def _scrapes(self, scope: Scope) -> bool:
        token = self._metrics.token
        if token is None:
            return from_this_machine(scope)
        return any(
            token.admits(value.decode("latin-1")) for name, value in scope["headers"] if name == b"authorization"
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, WebSocket or lifespan scope of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # as GET; the server sends no body for it
            scope = {**scope, "method": "GET"}
        path = scope["path"]
        if path in _OPEN or path.startswith(_OPEN_BELOW) or (path == _METRICS and self._scrapes(scope)):
            await self._app(scope, receive, send)
            return
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        carrier = {
            k: headers[b] for k, b in (("traceparent", b"traceparent"), ("tracestate", b"tracestate")) if b in headers
        }
        span = self._tracer.start_span(
            scope["method"],
            context=propagate.extract(carrier) if carrier else otel_context.Context(),
            kind=SpanKind.SERVER,
        )
        token = otel_context.attach(set_span_in_context(span))
        own_headers = _own_headers(span, headers.get(b"x-request-id", ""))
        if headers.get(_TIER) == FLEX:
            BACKGROUND.set(True)  # each request has a task of its own
        started = time.perf_counter()
        status = 500
        leave: Callable[[], None] | None = None
        lease = scope[LEASE_KEY] = self._bodies.lease()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*map(_relative, message.get("headers", ())), *own_headers]
            await send(message)

        console = self._console if path == CONSOLE or path.startswith(f"{CONSOLE}/") else None
        try:
            if console is not None:
                await console(scope, receive, answer)
                return
            if self._ring is not None:
                key = await self._ring.check(key_text(headers.get(b"authorization"), headers.get(b"x-api-key")))
                span.set_attribute(schema.API_KEY, key.key_id)
                leave = self._limiter.enter(key)
                CALLER.set(Caller(key))  # each request has a task of its own
            # Memory for the body is reserved before it is read; without a valid key it is not read.
            lease.hold(int(headers.get(b"content-length", 0)))
            await self._app(scope, receive, answer)
        except TidemillError as error:
            scope[CODE_KEY] = error.code
            await error_response(error, path)(scope, receive, answer)
        finally:
            lease.give_back()
            if leave is not None:
                leave()
            route = getattr(scope.get("route"), "path", None) or "unmatched"
            endpoint = f"{scope['method']} {route}"
            code = scope.get(CODE_KEY) or code_of_status(status)
            span.update_name(endpoint)
            span.set_attribute(schema.HTTP_METHOD, scope["method"])
            span.set_attribute(schema.HTTP_ROUTE, route)
            span.set_attribute(schema.URL_PATH, path[:_MAX_PATH])
            span.set_attribute(schema.HTTP_STATUS, status)
            if status >= 500 or (status == 200 and code not in ("OK", "CANCELLED")):  # or failed later
                span.set_status(StatusCode.ERROR, code)
                logger.error("%s ended with %s (HTTP %d)", endpoint, code, status)
            span.end()
            otel_context.detach(token)
            self._metrics.observe(endpoint, time.perf_counter() - started, code)


def _relative(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """The header; a redirect loses its scheme and host, which a proxy in front of the gateway may have changed."""
    name, value = header
    if name != b"location":
        return header
    parts = urlsplit(value.decode("latin-1"))
    return name, urlunsplit(("", "", parts.path, parts.query, "")).encode("latin-1")


def _own_headers(span: trace.Span, request_id: str) -> list[tuple[bytes, bytes]]:
    """The headers of every response. A caller's request id that is not safe to log is ignored."""
    known = request_id if request_id.isprintable() and request_id.isascii() else ""
    if known := known[:_MAX_REQUEST_ID]:
        span.set_attribute(schema.REQUEST_ID, known)
    context = span.get_span_context()
    if not context.is_valid:
        return [(b"x-request-id", known.encode())] if known else []
    trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    parent = f"00-{trace_id}-{span_id}-{int(context.trace_flags):02x}"
    return [
        (b"traceparent", parent.encode()),
        (b"x-trace-id", trace_id.encode()),
        (b"x-request-id", (known or trace_id).encode()),
    ]
