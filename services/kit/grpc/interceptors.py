"""Server interceptors: metrics, errors, validation, deadlines. Domain code does not know them."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from services.kit.deadline import set_call_deadline
from services.kit.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
    explained,
)
from services.kit.grpc.errors import to_status
from services.kit.grpc.validation import validate
from services.kit.telemetry.metrics import RequestMetrics

logger = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

Stream: TypeAlias = Callable[[Any, Any], AsyncGenerator[Any, None]]
"""Behaviour of a method with a stream of responses."""

# gRPC's own services: health probes would distort the metrics of real requests.
_PLAIN = ("/grpc.health.v1.", "/grpc.reflection.")


def rebuild(
    handler: Handler,
    unary: Callable[..., Any],
    stream: Callable[..., Any],
    deserialize: Callable[[bytes], Any] | None = None,
) -> Handler:
    """The handler with its behaviour wrapped: `unary` for one response, `stream` for several.

    `deserialize` replaces the handler's own deserializer, if given.
    """
    shape = {
        "request_deserializer": deserialize or handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
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
        if handler is None or method.startswith(_PLAIN):
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

        def stream(behaviour: Stream) -> Stream:
            async def call(request: Any, context: Any) -> AsyncGenerator[Any, None]:
                started, outcome = time.perf_counter(), "UNKNOWN"
                try:
                    async with aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            yield response
                    outcome = "OK"
                except (asyncio.CancelledError, GeneratorExit):
                    # The caller disconnected.
                    outcome = "CANCELLED"
                    raise
                finally:
                    observe(context, started, outcome)

            return call

        return rebuild(handler, unary, stream)


class _Undecodable:
    """A request that could not be decoded, kept until it can be refused with a status."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def refusal(self, method: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"Cannot decode the request of {method}: its bytes are not a valid message of that method.",
            reason="UNDECODABLE_REQUEST",
            metadata={"method": method, "type": type(self._error).__name__},
        )


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A deserializer that returns its failure as a value, since gRPC calls it outside of all interceptors."""
    if deserialize is None:
        return None

    def decoded(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception as error:
            return _Undecodable(error)

    return decoded


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns the errors of use cases into a status with details, and unexpected exceptions into INTERNAL.

    A request that cannot be decoded is INVALID_ARGUMENT for every method.
    """

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler of one call."""
        handler = await continuation(details)
        method = details.method
        if handler is None:
            return handler

        async def abort(context: Any, error: Exception) -> None:
            known = explained(error)
            if known is not None:
                error = known
            else:
                logger.error("unexpected error in %s", method, exc_info=error)
                error = InternalError(
                    f"{method} failed unexpectedly; the log of the service has the details.",
                    reason="UNEXPECTED",
                    metadata={"type": type(error).__name__},
                )
            await context.abort_with_status(rpc_status.to_status(to_status(error)))

        async def each_decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
            async for request in requests:
                if isinstance(request, _Undecodable):
                    raise request.refusal(method)
                yield request

        def decoded(request: Any) -> Any:
            if handler.request_streaming:
                return each_decoded(request)
            if isinstance(request, _Undecodable):
                raise request.refusal(method)
            return request

        def unary(behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
            async def call(request: Any, context: Any) -> Any:
                try:
                    return await behaviour(decoded(request), context)
                except (grpc.aio.AbortError, asyncio.CancelledError):
                    raise
                except Exception as error:
                    failed = error
                # Outside of the block above: tracing would keep the error with the abort, and it may quote the caller.
                await abort(context, failed)
                return None

            return call

        def stream(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
            if inspect.iscoroutinefunction(behaviour):  # it writes its responses itself, as the health service does
                return unary(behaviour)

            async def call(request: Any, context: Any) -> AsyncGenerator[Any, None]:
                try:
                    async with aclosing(behaviour(decoded(request), context)) as responses:
                        async for response in responses:
                            yield response
                    return
                except (grpc.aio.AbortError, asyncio.CancelledError):
                    raise
                except Exception as error:
                    failed = error
                await abort(context, failed)

            return call

        return rebuild(handler, unary, stream, _tolerant(handler.request_deserializer))


class ValidationInterceptor(grpc.aio.ServerInterceptor):
    """Validates every request against the rules of its proto. Runs inside ErrorInterceptor."""

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler of one call."""
        handler = await continuation(details)
        if handler is None or not details.method.startswith("/tidemill."):
            return handler

        async def checked(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
            async for request in requests:
                if isinstance(request, Message):  # a proxy's bytes are validated by the service that decodes them
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

        def stream(behaviour: Stream) -> Stream:
            async def call(request: Any, context: Any) -> AsyncGenerator[Any, None]:
                async with aclosing(behaviour(check(request), context)) as responses:
                    async for response in responses:
                        yield response

            return call

        return rebuild(handler, unary, stream)


class WatchInterceptor(grpc.aio.ServerInterceptor):
    """Ends Watch streams as soon as the server begins to stop. Runs inside ErrorInterceptor.

    They last as long as what they watch, so each would delay the stop for the whole drain time. Callers reconnect.
    """

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler of one call."""
        handler = await continuation(details)
        service, _, method = details.method.rpartition("/")
        # Watchers of the health service must see it change.
        if handler is None or not (service.startswith("/tidemill.") and method.startswith("Watch")):
            return handler

        def stream(behaviour: Stream) -> Stream:
            async def call(request: Any, context: Any) -> AsyncGenerator[Any, None]:
                responses = behaviour(request, context)
                # One context for all steps, as for a generator that runs in one task.
                own, loop = contextvars.copy_context(), asyncio.get_running_loop()
                stopped = asyncio.ensure_future(self._stopping.wait())
                following: asyncio.Task[Any] | None = None
                try:
                    while True:
                        following = loop.create_task(_next(responses), context=own)
                        await asyncio.wait({following, stopped}, return_when=asyncio.FIRST_COMPLETED)
                        if not following.done():
                            raise UnavailableError(
                                "The service is stopping. Retry later.", reason="STOPPING", retry_after_s=1.0
                            )
                        response = following.result()
                        if response is _END:
                            return
                        yield response
                finally:
                    tasks = [stopped, *([following] if following is not None else [])]
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                    await loop.create_task(_close(responses), context=own)

            return call

        return rebuild(handler, stream, stream)


_END = object()


async def _next(responses: AsyncIterator[Any]) -> Any:
    """The next response; `_END` after the last."""
    return await anext(responses, _END)


async def _close(responses: AsyncGenerator[Any, None]) -> None:
    await responses.aclose()


class DeadlineInterceptor(grpc.aio.ServerInterceptor):
    """Ends a unary call whose caller no longer waits, or that a caller without a deadline left open.

    The caller's deadline wins; `default_s` applies without one. Streams may be long and have no default.
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
            set_call_deadline(limit)
            scope = asyncio.timeout(limit)
            try:
                async with scope:
                    return await behaviour(request, context)
            except TimeoutError as error:
                if not scope.expired():  # raised by the behaviour itself, not by `limit`
                    raise
                raise DeadlineExceededError(
                    f"{details.method} did not finish within {limit:.1f} s.", metadata={"method": details.method}
                ) from error

        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
