"""Closes the generator of each response stream in the task of its call, also when the caller hangs up.

gRPC drops the generator when its caller hangs up between two responses. Python would then close it later in another
task, where its span cannot be ended, or never, if the process ends first.
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
    """Lets `StreamInterceptor` close the streams of handlers inside an interceptor that does not close them.

    Install it directly inside that interceptor.
    """

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
