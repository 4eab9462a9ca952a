"""Server interceptors: metrics, errors, validation, deadlines. Domain code knows none of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from services.kit.errors import DeadlineExceededError, InternalError, TidemillError
from services.kit.grpc.errors import to_status
from services.kit.grpc.validation import validate
from services.kit.telemetry.metrics import RequestMetrics

logger = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

# Probes would drown the figures of real requests.
_UNMEASURED = ("/grpc.health.v1.", "/grpc.reflection.")


def _rebuild(handler: Handler, unary: Callable[..., Any], stream: Callable[..., Any]) -> Handler:
    """The handler with its behaviour wrapped: `unary` for one response, `stream` for several."""
    shape = {"request_deserializer": handler.request_deserializer, "response_serializer": handler.response_serializer}
    if handler.request_streaming:
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(stream(handler.stream_stream), **shape)
        return grpc.stream_unary_rpc_method_handler(unary(handler.stream_unary), **shape)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(stream(handler.unary_stream), **shape)
    return grpc.unary_unary_rpc_method_handler(unary(handler.unary_unary), **shape)


class MetricsInterceptor(grpc.aio.ServerInterceptor):
    """Measures every call: histogram `request_latency`, counter of errors."""

    def __init__(self, metrics: RequestMetrics) -> None:
        self._metrics = metrics

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler of one call."""
        handler = await continuation(details)
        method = details.method
        if handler is None or method.startswith(_UNMEASURED):
            return handler

        def observe(context: Any, started: float, otherwise: str) -> None:
            code = context.code()
            name = getattr(code, "name", None) or otherwise
            if isinstance(code, int):
                name = next((c.name for c in grpc.StatusCode if c.value[0] == code), "UNKNOWN")
            self._metrics.observe(method, time.perf_counter() - started, name)

        def unary(behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
            async def call(request: Any, context: Any) -> Any:
                started, outcome = time.perf_counter(), "UNKNOWN"
                try:
                    response = await behaviour(request, context)
                    outcome = "OK"
                    return response
                except asyncio.CancelledError:
                    outcome = "CANCELLED"
                    raise
                finally:
                    observe(context, started, outcome)

            return call

        def stream(behaviour: Callable[[Any, Any], AsyncIterator[Any]]) -> Callable[[Any, Any], AsyncIterator[Any]]:
            async def call(request: Any, context: Any) -> AsyncIterator[Any]:
                started, outcome = time.perf_counter(), "UNKNOWN"
                try:
                    async for response in behaviour(request, context):
                        yield response
                    outcome = "OK"
                except (asyncio.CancelledError, GeneratorExit):
                    # The caller went away.
                    outcome = "CANCELLED"
                    raise
                finally:
                    observe(context, started, outcome)

            return call

        return _rebuild(handler, unary, stream)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what use cases raise into a status with details; what they should not raise into INTERNAL."""

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler of one call."""
        handler = await continuation(details)
        if handler is None:
            return handler
        method = details.method

        async def abort(context: Any, error: Exception) -> None:
            if not isinstance(error, TidemillError):
                logger.exception("unexpected error in %s", method)
                error = InternalError(
                    f"{method} failed unexpectedly; the log of the service tells more.",
                    reason="UNEXPECTED",
                    metadata={"type": type(error).__name__},
                )
            await context.abort_with_status(rpc_status.to_status(to_status(error)))

        def unary(behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
            async def call(request: Any, context: Any) -> Any:
                try:
                    return await behaviour(request, context)
                except (grpc.aio.AbortError, asyncio.CancelledError):
                    raise
                except Exception as error:
                    await abort(context, error)

            return call

        def stream(behaviour: Callable[[Any, Any], AsyncIterator[Any]]) -> Callable[[Any, Any], AsyncIterator[Any]]:
            async def call(request: Any, context: Any) -> AsyncIterator[Any]:
                try:
                    async for response in behaviour(request, context):
                        yield response
                except (grpc.aio.AbortError, asyncio.CancelledError):
                    raise
                except Exception as error:
                    await abort(context, error)

            return call

        return _rebuild(handler, unary, stream)


class ValidationInterceptor(grpc.aio.ServerInterceptor):
    """Holds every request against the rules of its proto. Stands inside ErrorInterceptor."""

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler of one call."""
        handler = await continuation(details)
        if handler is None or not details.method.startswith("/tidemill."):
            return handler

        async def checked(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
            async for request in requests:
                if isinstance(request, Message):  # a proxy's bytes are validated where they are read
                    validate(request)
                yield request

        def check(request: Any) -> Any:
            if handler.request_streaming:
                return checked(request)
            if isinstance(request, Message):
                validate(request)
            return request

        def unary(behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
            async def call(request: Any, context: Any) -> Any:
                return await behaviour(check(request), context)

            return call

        def stream(behaviour: Callable[[Any, Any], AsyncIterator[Any]]) -> Callable[[Any, Any], AsyncIterator[Any]]:
            async def call(request: Any, context: Any) -> AsyncIterator[Any]:
                async for response in behaviour(check(request), context):
                    yield response

            return call

        return _rebuild(handler, unary, stream)


class DeadlineInterceptor(grpc.aio.ServerInterceptor):
    """Ends a unary call that its caller no longer waits for, or that a caller without a deadline left open.

    The caller's own deadline wins; `default_s` holds where there is none. Streams may be long and have none.
    """

    def __init__(self, default_s: float) -> None:
        self._default_s = default_s

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler of one call."""
        handler = await continuation(details)
        if handler is None or handler.response_streaming or handler.request_streaming:
            return handler
        behaviour: Any = handler.unary_unary

        async def call(request: Any, context: Any) -> Any:
            remaining = context.time_remaining()
            limit = remaining if remaining is not None else self._default_s
            try:
                async with asyncio.timeout(limit):
                    return await behaviour(request, context)
            except TimeoutError as error:
                raise DeadlineExceededError(
                    f"{details.method} did not end within {limit:.1f} s.", metadata={"method": details.method}
                ) from error

        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
