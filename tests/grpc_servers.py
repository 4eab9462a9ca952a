"""Servers that end with their test, also with one that fails: gRPC's server, left alone, hangs a later collection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from services.kit.grpc.server import bind


@asynccontextmanager
async def serving(server: grpc.aio.Server) -> AsyncIterator[int]:
    """Serves on a port of loopback for the length of the block."""
    port = bind(server, "127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)
