"""Builds the HTTP application."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline
from opentelemetry.trace import Tracer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from gateway.batches.store import BatchStore
from gateway.health import PartsHealth
from gateway.http.batches import batch_routes
from gateway.http.chat import chat_routes
from gateway.http.dispatch import Dispatch
from gateway.http.door import App, Door, check_role
from gateway.http.embeddings import embedding_routes
from gateway.http.errors import (
    CODE_KEY,
    ClientGone,
    ErrorBody,
    V2ErrorBody,
    described_errors,
    error_response,
    unexpected,
)
from gateway.http.health import health_routes
from gateway.http.intake import intake_routes
from gateway.http.limits import BodyBudget
from gateway.http.predict import predict_routes
from gateway.http.responses import response_routes
from gateway.http.text_completions import text_completion_routes
from gateway.http.v2 import v2_routes
from gateway.keys.limiter import KeyLimiter
from gateway.keys.ring import KeyRing
from gateway.peers import Peers
from gateway.plane import DataPlane
from services.kit.errors import InvalidArgumentError, NotFoundError, TidemillError
from services.kit.telemetry.metrics import RequestMetrics
from services.kit.telemetry.process_metrics import ProcessMetrics

_DESCRIPTION = (
    "HTTP API of a Tidemill mesh: OpenAI-compatible chat and embeddings, KServe V2, records and feedback. "
    "Every request except health checks needs an API key as `Authorization: Bearer <key>`."
)


def create_routes(
    peers: Peers,
    plane: DataPlane,
    batches: BatchStore,
    made: asyncio.Event,
    processes: ProcessMetrics,
    health: PartsHealth | None = None,
    *,
    keyed: bool,
) -> Dispatch:
    """The ASGI application behind the door: it takes callers as checked.

    Args:
        peers: the services behind the gateway.
        plane: answers with models.
        batches: files and batches.
        made: is set when a batch was made or cancelled.
        processes: the metrics of all processes of this gateway.
        health: of the services; of its own when None.
        keyed: whether callers need keys.
    """
    app = FastAPIOffline(
        title="Tidemill",
        version="1",
        description=_DESCRIPTION,
        redoc_url=None,
        dependencies=[Depends(check_role)],
        # `Door` creates the server span; FastAPI's own, on by default since 0.162, would start a second trace.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.add_exception_handler(TidemillError, _failed)
    app.add_exception_handler(ClientGone, _gone)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _unexpected)
    routers = (
        chat_routes(plane),
        response_routes(plane),
        text_completion_routes(plane),
        predict_routes(plane),
        embedding_routes(plane),
        intake_routes(peers),
        batch_routes(batches, made),
        v2_routes(plane.v2),
        health_routes(health or PartsHealth(peers.channels), processes),
    )
    for router in routers:
        kind = V2ErrorBody if "KServe V2" in router.tags else ErrorBody
        app.include_router(router, responses=described_errors(kind))
    if keyed:
        _document_the_key(app)
    return Dispatch(app, (route for router in routers for route in router.routes), _expected, _unexpected)


def create_app(
    routes: App,
    ring: KeyRing | None,
    limiter: KeyLimiter,
    metrics: RequestMetrics,
    tracer: Tracer,
    bodies: BodyBudget,
    origins: Sequence[str] = (),
    console: App | None = None,
) -> App:
    """The whole ASGI application.

    Args:
        routes: of `create_routes`.
        ring: the valid API keys; None accepts every caller.
        limiter: the keys' limits, shared with the other door.
        metrics: of this process.
        tracer: creates the server spans.
        bodies: the memory of all current bodies.
        origins: of web pages that may call, such as `https://app.example.com`; `*` for every page.
        console: what answers below `/console`.
    """
    door = Door(routes, ring, limiter, metrics, tracer, bodies, console)
    if not origins:
        return door
    # Outside the key check: a browser's preflight request carries no key.
    return CORSMiddleware(
        door,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=(
            *("x-request-id", "x-trace-id", "traceparent", "retry-after", "retry-after-ms"),
            *("x-model-version", "x-model-role"),
        ),
        max_age=600,
    )


def _document_the_key(app: FastAPI) -> None:
    """Adds the API key to the OpenAPI document; it is checked before the framework sees a request."""
    written = app.openapi

    def openapi() -> dict[str, Any]:
        document = written()
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["apiKey"] = {"type": "http", "scheme": "bearer"}
        document["security"] = [{"apiKey": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _expected(request: Request, error: Exception) -> Response | None:
    """The response to an error that endpoints raise; None for any other."""
    if isinstance(error, TidemillError):
        return _failed(request, error)
    return _gone(request, error) if isinstance(error, ClientGone | ClientDisconnect) else None


def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, TidemillError)
    request.scope[CODE_KEY] = error.code
    return error_response(error, request.url.path)


def _unexpected(request: Request, error: Exception) -> Response:
    """Handles unexpected errors; Starlette raises them again after this response, and the server logs them."""
    return _failed(request, unexpected(error))


def _gone(request: Request, _error: Exception) -> Response:
    request.scope[CODE_KEY] = "CANCELLED"
    return Response(status_code=499)  # no one reads it


def _refused(request: Request, error: Exception) -> Response:
    """Handles errors of the router: an unknown path or method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        return error_response(
            NotFoundError(f"The path {path[:200]} does not exist; see /docs.", reason="UNKNOWN_PATH"), path
        )
    response = error_response(
        InvalidArgumentError(f"{request.method} {path[:200]}: {error.detail}.", reason="METHOD_NOT_ALLOWED"), path
    )
    response.status_code = error.status_code
    if allowed := (error.headers or {}).get("Allow"):
        response.headers["allow"] = ", ".join((allowed, "HEAD")) if allowed == "GET" else allowed
    return response
