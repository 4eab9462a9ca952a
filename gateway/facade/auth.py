"""Admits calls with a valid API key that has the required role, within the key's limits."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from gateway.access import CALLER, METHODS, Caller, demand
from gateway.keys.key import ApiKey
from gateway.keys.limiter import KeyLimiter
from gateway.keys.ring import KeyRing, key_text
from services.kit.errors import TidemillError
from services.kit.grpc.interceptors import Stream, rebuild


class ApiKeyInterceptor(grpc.aio.ServerInterceptor):
    """Runs inside the kit's ErrorInterceptor, which turns its errors into a status."""

    def __init__(self, ring: KeyRing, limiter: KeyLimiter) -> None:
        """Args:
        ring: the valid keys.
        limiter: their limits, shared with the other door.
        """
        self._ring = ring
        self._limiter = limiter

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Returns the call's handler, or one that refuses the call."""
        handler = await continuation(details)
        roles = METHODS.get(details.method, frozenset())
        if handler is None or roles is None:
            # An unknown method is UNIMPLEMENTED for everyone. Refusals are counted by method, so refusing it here would
            # let anyone create metrics with names of their choice.
            return handler
        given = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
        try:
            key = await self._ring.check(key_text(given.get("authorization"), given.get("x-api-key")))
            demand(key, roles, details.method)
        except TidemillError as error:
            return _refusal(error)
        return self._admitted(handler, key)

    def _admitted(self, handler: Any, key: ApiKey) -> Any:
        """The handler, with the caller's identity set and the call counted against the key's limits."""

        def unary(behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
            async def call(request: Any, context: Any) -> Any:
                leave = self._limiter.enter(key)
                try:
                    CALLER.set(Caller(key))
                    return await behaviour(request, context)
                finally:
                    leave()

            return call

        def stream(behaviour: Stream) -> Stream:
            async def call(request: Any, context: Any) -> AsyncGenerator[Any, None]:
                leave = self._limiter.enter(key)
                try:
                    CALLER.set(Caller(key))
                    async with aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            yield response
                finally:
                    leave()

            return call

        return rebuild(handler, unary, stream)


def _refusal(error: TidemillError) -> Any:
    async def refuse(_requests: Any, _context: Any) -> AsyncIterator[Any]:
        raise error
        yield  # type: ignore[unreachable]  # makes it a stream

    # On the wire an empty stream fits every kind of method, and no request message has to be read.
    return grpc.stream_stream_rpc_method_handler(refuse)
