"""Addresses of the children of one mesh: a TCP port on loopback, or a Unix socket that only this user can open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Ports and sockets by use, such as `kafka`, `triton_grpc`, `gateway_http`. A use is one or the other."""

    ports: Mapping[str, int]
    sockets: Mapping[str, Path]

    def __contains__(self, use: object) -> bool:
        """Whether a child with this use runs."""
        return use in self.ports or use in self.sockets

    def __getitem__(self, use: str) -> str:
        """`127.0.0.1:port` or `unix:/path`, as gRPC reads it.

        Raises:
            KeyError: no child with this use runs.
        """
        return f"unix:{self.sockets[use]}" if use in self.sockets else f"{HOST}:{self.ports[use]}"
