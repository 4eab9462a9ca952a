"""Lets calls in that carry a valid API key. Health and liveness are open, so that probes need none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from gateway.keys.ring import KeyRing, key_text
from services.kit.errors import TidemillError

_OPEN = (
    "/grpc.health.v1.",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)


class ApiKeyInterceptor(grpc.aio.ServerInterceptor):
    """Stands inside the kit's ErrorInterceptor, which turns what it raises into a status."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Gives the call's own handler, or one that refuses it."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(_OPEN):
            # What does not exist is UNIMPLEMENTED for everybody. A refusal is measured under the method's name, and
            # strangers must not make up names of metrics.
            return handler
        given = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
        try:
            await self._ring.check(key_text(given.get("authorization"), given.get("x-api-key")))
        except TidemillError as error:
            return _refusal(error)
        return handler


def _refusal(error: TidemillError) -> Any:
    async def refuse(_requests: Any, _context: Any) -> AsyncIterator[Any]:
        raise error
        yield  # type: ignore[unreachable]  # makes it a stream

    # On the wire a stream of none fits every kind of method, and no message need be read.
    return grpc.stream_stream_rpc_method_handler(refuse)
