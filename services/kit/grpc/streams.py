"""Response streams are closed where they ran: in the task of their call, whatever becomes of the caller.

gRPC drops the generator of a call whose caller hung up between two responses. Python would close it later, in a task
of its own: spans and other context could not be left there, and at the end of the process it would be lost unfinished.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Any

import grpc

from services.kit.grpc.interceptors import Continuation, Stream, rebuild

_open_streams: ContextVar[AsyncExitStack] = ContextVar("open_streams")


class StreamInterceptor(grpc.aio.ServerInterceptor):
    """Writes the responses of a stream itself and closes its generators at the end. The outermost interceptor."""

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler of one call."""
        handler = await continuation(details)
        return None if handler is None else rebuild(handler, _as_it_is, _written)


class OwnedStreamInterceptor(grpc.aio.ServerInterceptor):
    """Has `StreamInterceptor` close what is inside an interceptor that does not. Directly inside that one."""

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler of one call."""
        handler = await continuation(details)
        return None if handler is None else rebuild(handler, _as_it_is, _owned)


def _as_it_is(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    return behaviour


def _written(stream: Stream) -> Callable[[Any, Any], Awaitable[None]] | Stream:
    if inspect.iscoroutinefunction(stream):  # it writes its responses itself, as the health service does
        return stream

    async def respond(request: Any, context: Any) -> None:
        async with AsyncExitStack() as open_streams:
            _open_streams.set(open_streams)
            responses = stream(request, context)
            open_streams.push_async_callback(responses.aclose)
            async for response in responses:
                await context.write(response)

    return respond


def _owned(stream: Stream) -> Callable[[Any, Any], Any]:
    if inspect.iscoroutinefunction(stream):
        return stream

    async def respond(request: Any, context: Any) -> AsyncGenerator[Any, None]:
        responses = stream(request, context)
        # What is opened last is closed first.
        _open_streams.get().push_async_callback(responses.aclose)
        async for response in responses:
            yield response

    return respond
