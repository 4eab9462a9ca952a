"""Opening a channel, and the metadata of a call."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

_MAX_BYTES = 64 * 1024 * 1024
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_BYTES),
    ("grpc.max_send_message_length", _MAX_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    # Retries are this package's own: gRPC's do not wait for the time that the mesh names.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


@dataclass(frozen=True, slots=True)
class Target:
    """The gateway and how it is trusted."""

    address: str
    key: str | None
    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    client_key: str | os.PathLike[str] | None = None
    tls: bool = False
    background: bool = False

    def open(self, aio: bool) -> Any:
        """A channel of either kind; connects at the first call."""
        module: Any = grpc.aio if aio else grpc
        if not (self.tls or self.ca):
            return module.insecure_channel(self.address, options=_OPTIONS)
        shown = (Path(each).read_bytes() if each else None for each in (self.ca, self.client_key, self.certificate))
        return module.secure_channel(self.address, grpc.ssl_channel_credentials(*shown), options=_OPTIONS)

    def metadata(self, user: str | None) -> tuple[tuple[str, str], ...]:
        """Of one call: the key, the user whose version is sticky, and the current trace."""
        carrier: dict[str, str] = {}
        _inject(carrier)
        if self.key:
            carrier["authorization"] = f"Bearer {self.key}"
        if user is not None:
            carrier["x-user-id"] = user
        if self.background:
            carrier["x-service-tier"] = "flex"
        return tuple(carrier.items())


def _inject(carrier: dict[str, str]) -> None:
    try:
        from opentelemetry import propagate
    except ModuleNotFoundError:  # optional
        return
    propagate.inject(carrier)
