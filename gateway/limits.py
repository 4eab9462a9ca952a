"""Limits for HTTP clients: header size, time, connections, and the memory of current bodies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of the HTTP API; sizes in bytes, times in seconds."""

    header_bytes: int = 64 * 1024
    """Size of one request's line and headers, trailers included."""
    headers: int = 100
    header_timeout_s: float = 10.0
    """Time for a request's headers to be complete, and for the first byte of a new connection."""
    body_timeout_s: float = 20.0
    """A body may pause for this long; on average it must arrive at `body_bytes_per_s`."""
    body_bytes_per_s: int = 16 * 1024
    write_timeout_s: float = 60.0
    """A response that the client does not read for this long is dropped with its connection."""
    connections: int = 2000
    connections_per_client: int = 500
    """Open connections from one address; a reverse proxy counts as one client."""
    connection_age_s: float = 300.0
    """The response to a request on a connection that is this old, up to a tenth more or less, is its last one."""
    pipelined: int = 64
    """Requests that may wait on one connection behind the current one."""
    body_bytes: int = 64 * 1024 * 1024
    """Size of one body, also after decompression."""
    bodies_bytes: int = 256 * 1024 * 1024
    """Size of all current bodies together."""
