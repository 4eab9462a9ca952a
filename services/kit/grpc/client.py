"""Channels to peers: traced, with keep-alive, retries while a peer is unavailable, and a deadline on unary calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.instrumentation.grpc import aio_client_interceptors

from services.kit.grpc.renewing import RenewingChannel
from services.kit.grpc.server import MAX_MESSAGE_BYTES
from services.kit.tls import Certificates, TlsFiles

# gRPC's own retries (gRFC A6), with its jitter: only if the peer did not accept the call.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "3s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        # The retry budget: a failed attempt takes one token, a successful call returns half of one. With less than half
        # of the tokens left, calls fail at their first attempt instead of multiplying the load of a struggling peer.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
    }
)


class _DefaultDeadline(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        if details.timeout is None:
            details = grpc.aio.ClientCallDetails(
                details.method, self._seconds, details.metadata, details.credentials, details.wait_for_ready
            )
        return await continuation(details, request)


def connect(address: str, tls: tuple[Path, Path, Path] | None, **options: Any) -> grpc.aio.Channel:
    """A channel without the settings of `open_channel`: over mutual TLS, on every connection but a Unix socket's."""
    if tls is None or address.startswith("unix:"):
        return grpc.aio.insecure_channel(address, **options)
    return RenewingChannel(TlsFiles(*tls), partial(_secure, address, options))


def _secure(address: str, options: dict[str, Any], files: Certificates) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(address, files.channel_credentials(), **options)


def open_channel(
    address: str,
    *,
    default_deadline_s: float = 30.0,
    bare: bool = False,
    tls: tuple[Path, Path, Path] | None = None,
) -> grpc.aio.Channel:
    """A channel to a peer; create it inside the running event loop and close it at the end.

    Args:
        address: `host:port` or `unix:/path`.
        default_deadline_s: deadline of unary calls that set none.
        bare: without interceptors, for a proxy that passes on deadline and trace context itself: they cost more
            than the rest of a call.
        tls: certificate, key and authority for mutual TLS, on every connection except over a Unix socket; read again
            when they change.

    Raises:
        FailedPreconditionError: the files cannot be used; names the file.
    """
    return connect(
        address,
        tls,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # A frozen peer is found within ten seconds, not at each caller's deadline: pings are answered by threads of
            # gRPC's core, however busy Python is. Until it answers again, connecting fails and so do calls, at once.
            ("grpc.keepalive_time_ms", 5_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # Without this one the core waits a minute for the answer to a ping that measured bandwidth.
            ("grpc.http2.ping_timeout_ms", 5_000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.min_reconnect_backoff_ms", 2_000),
            ("grpc.enable_retries", 1),
            ("grpc.service_config", _SERVICE_CONFIG),
            # Reconnect to a restarted peer within a second, not within two minutes.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ],
        interceptors=[] if bare else [*aio_client_interceptors(), _DefaultDeadline(default_deadline_s)],  # type: ignore[no-untyped-call]
    )
