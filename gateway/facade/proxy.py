"""Passes calls on to the services as bytes: messages are neither read nor built here.

The caller's deadline, metadata and cancellation reach the service; its status, details and trailing metadata reach
the caller. Credentials stay here, and the trace context is replaced by the gateway's own span.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor

from gateway.facade.table import PublicService
from gateway.peers import trace_metadata
from services.kit.errors import UnavailableError

# Credentials end here; the others belong to one hop.
_NOT_FORWARDED = frozenset(
    {"authorization", "x-api-key", "traceparent", "tracestate", "user-agent", "te", "content-type"}
)
_STATUS_DETAILS = "grpc-status-details-bin"


class FacadeHandler(grpc.GenericRpcHandler):
    """Finds the handler of a public method; everything else is UNIMPLEMENTED."""

    def __init__(self, services: Iterable[PublicService], channels: Mapping[str, grpc.aio.Channel]) -> None:
        """Args:
        services: the table.
        channels: open channel by peer.
        """
        self._handlers: dict[str, Any] = {}
        for service in services:
            for method in service.public_methods():
                path = f"/{service.name}/{method.name}"
                self._handlers[path] = _handler(method, path, service.peer, channels[service.peer])

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of one call, or None."""
        return self._handlers.get(handler_call_details.method)


def _handler(method: MethodDescriptor, path: str, peer: str, channel: grpc.aio.Channel) -> Any:
    if not method.client_streaming and not method.server_streaming:
        return grpc.unary_unary_rpc_method_handler(_unary(channel.unary_unary(path), peer))
    if not method.client_streaming:
        return grpc.unary_stream_rpc_method_handler(_stream(channel.unary_stream(path), peer))
    if not method.server_streaming:
        return grpc.stream_unary_rpc_method_handler(_unary(channel.stream_unary(path), peer))
    return grpc.stream_stream_rpc_method_handler(_stream(channel.stream_stream(path), peer))


def forwarded_metadata(context: Any) -> tuple[tuple[str, str | bytes], ...]:
    """What of the caller's metadata the service is to see, with the present span's trace context."""
    kept = (
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if key not in _NOT_FORWARDED and not key.startswith("grpc-")
    )
    return (*kept, *trace_metadata())


def _unary(call: Any, peer: str) -> Any:
    async def forward(request: Any, context: Any) -> Any:
        upstream = call(request, timeout=context.time_remaining(), metadata=forwarded_metadata(context))
        try:
            response = await upstream
            await _pass_metadata(upstream, context)
            return response
        except grpc.aio.AioRpcError as error:
            await _relay(context, error, peer)
        finally:
            upstream.cancel()  # does nothing to a call that ended

    return forward


def _stream(call: Any, peer: str) -> Any:
    async def forward(request: Any, context: Any) -> AsyncIterator[Any]:
        upstream = call(request, timeout=context.time_remaining(), metadata=forwarded_metadata(context))
        try:
            async for response in upstream:
                yield response
            await _pass_metadata(upstream, context)
        except grpc.aio.AioRpcError as error:
            await _relay(context, error, peer)
        finally:
            upstream.cancel()

    return forward


async def _pass_metadata(upstream: Any, context: Any) -> None:
    if trailing := await upstream.trailing_metadata():
        context.set_trailing_metadata(tuple(trailing))


async def _relay(context: Any, error: grpc.aio.AioRpcError, peer: str) -> NoReturn:
    """Ends the caller's call as the service ended ours."""
    trailing = tuple(error.trailing_metadata() or ())
    if error.code() is grpc.StatusCode.UNAVAILABLE and not any(key == _STATUS_DETAILS for key, _ in trailing):
        raise UnavailableError(
            f"The {peer} service does not answer: {error.details()}",
            reason="PEER_UNAVAILABLE",
            metadata={"peer": peer},
            retry_after_s=1.0,
        ) from error
    await context.abort(error.code(), error.details() or "", trailing)
    raise AssertionError("unreachable: abort raises")
