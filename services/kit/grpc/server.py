"""A gRPC server with what every service has: health, reflection, interceptors, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from opentelemetry.instrumentation.grpc import aio_server_interceptor, filters

from services.kit.errors import FailedPreconditionError
from services.kit.grpc.interceptors import (
    DeadlineInterceptor,
    ErrorInterceptor,
    MetricsInterceptor,
    ValidationInterceptor,
    WatchInterceptor,
)
from services.kit.grpc.streams import OwnedStreamInterceptor, StreamInterceptor
from services.kit.telemetry.metrics import RequestMetrics

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Clients may ping idle connections up to once a second; C-core's own limit is one ping in two hours.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    # Otherwise a second process on the same port would silently take half of the calls. A gateway asks for that.
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True)
class GrpcServer:
    """A server with its health servicer."""

    server: grpc.aio.Server
    health: health.aio.HealthServicer
    services: Sequence[str]

    async def set_serving(self, serving: bool) -> None:
        """Sets the health of every service, and of the server as a whole."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self.services):
            await self.health.set(name, status)


def create_server(
    metrics: RequestMetrics,
    *,
    default_deadline_s: float = 60.0,
    extra: Sequence[grpc.aio.ServerInterceptor] = (),
    traced: bool = True,
    stopping: asyncio.Event | None = None,
    options: Sequence[tuple[str, int]] = (),
    requests: grpc.aio.ServerInterceptor | None = None,
) -> grpc.aio.Server:
    """A server without servicers.

    Outermost first: streams, trace, metrics, errors, `extra` (auth…), watches, deadline, validation, `requests`. Once
    `stopping` is set, streams that watch something end. `options` of gRPC's core replace those of every server.
    """
    trace: list[grpc.aio.ServerInterceptor] = []
    if traced:
        trace.append(aio_server_interceptor(filter_=filters.negate(filters.health_check())))  # type: ignore[no-untyped-call]
        trace.append(OwnedStreamInterceptor())
    return grpc.aio.server(
        interceptors=[
            StreamInterceptor(),
            *trace,
            MetricsInterceptor(metrics),
            ErrorInterceptor(),
            *extra,
            *([WatchInterceptor(stopping)] if stopping is not None else []),
            DeadlineInterceptor(default_deadline_s),
            ValidationInterceptor(),
            *([requests] if requests is not None else []),
        ],
        # Of an option that is given twice gRPC's core takes the first.
        options=list({**dict(SERVER_OPTIONS), **dict(options)}.items()),
    )


def finish_server(server: grpc.aio.Server, services: Sequence[str]) -> GrpcServer:
    """Adds health and reflection once the servicers named by `services` (full proto names) are added."""
    servicer = health.aio.HealthServicer()
    unread: Any = _ReadByHandlers(server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, unread)
    names = [*services, health.SERVICE_NAME, reflection.SERVICE_NAME]
    about = reflection.aio.ReflectionServicer(names, pool=descriptor_pool.Default())
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(about, unread)  # type: ignore[no-untyped-call]
    return GrpcServer(server, servicer, tuple(services))


class _ReadByHandlers:
    """A server that reads no message of a call before its interceptors have run.

    Of a method that is registered by name gRPC's core reads the message first, also if the caller is then refused.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Does nothing: the generic handlers have the same methods."""


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
    """Opens the port or the Unix socket.

    Args:
        server: the server.
        address: `host:port` or `unix:/path`. A socket left by an earlier process is replaced.
        credentials: TLS credentials of the server; None for plain text.

    Returns:
        The port, also if `address` asked for any (port 0); meaningless for a socket.

    Raises:
        FailedPreconditionError: the port is taken, the address does not belong to this machine, or the socket's folder
    """
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        port = 0
        cause: Exception | None = error
    else:
        cause = None
    if port == 0:
        why = (
            "the socket's folder is missing or not accessible. Set TIDEMILL_BIND to a socket in another folder."
            if address.startswith("unix:")
            else "the port is in use, or the address does not belong to this machine. "
            "Stop the other process or set TIDEMILL_BIND to another port."
        )
        raise FailedPreconditionError(
            f"Cannot listen on {address}: {why}", reason="PORT_IN_USE", metadata={"address": address}
        ) from cause
    return port
