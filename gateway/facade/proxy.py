"""Passes calls on to the services as bytes: messages are neither read nor built here.

The caller's deadline, metadata and cancellation reach the service; its status, details and trailing metadata reach
the caller. Credentials are not passed on, only the key's id and tenant. Calls to a model are not passed on: the gateway
answers them itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, NoReturn
from urllib.parse import quote

import grpc
from google.protobuf.descriptor import MethodDescriptor

from gateway.facade.table import OWN, PublicService
from gateway.peers import call_metadata
from services.kit.errors import peer_away
from services.kit.grpc.request_streams import RequestStream

# Prefixes of headers of one hop, and of those that only the gateway may set.
_OURS = ("grpc-", "x-tidemill-")
# Credentials end here; the others belong to one hop.
_NOT_FORWARDED = frozenset(
    {"authorization", "x-api-key", "traceparent", "tracestate", "user-agent", "te", "content-type"}
)
# gRPC's core sends ASCII only, but takes UTF-8: it is passed on percent-encoded, as gRPC encodes messages of statuses.
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_STATUS_DETAILS = "grpc-status-details-bin"


class FacadeHandler(grpc.GenericRpcHandler):
    """Finds the handler of a public method; everything else is UNIMPLEMENTED."""

    def __init__(
        self,
        services: Iterable[PublicService],
        channels: Mapping[str, grpc.aio.Channel],
        own: Mapping[str, Any],
    ) -> None:
        """Args:
        services: the table.
        channels: open channel by peer.
        own: handlers of the methods that the gateway answers itself, by path.
        """
        self._handlers: dict[str, Any] = {}
        for service in services:
            for method in service.public_methods():
                path = f"/{service.name}/{method.name}"
                self._handlers[path] = (
                    own[path]
                    if service.peer == OWN
                    else _Forwarder(path, service.peer).handler(method, channels[service.peer])
                )

    @property
    def paths(self) -> frozenset[str]:
        """Paths of all public methods."""
        return frozenset(self._handlers)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of one call, or None."""
        return self._handlers.get(handler_call_details.method)


class _Forwarder:
    """Passes the calls of one method on."""

    def __init__(self, path: str, peer: str) -> None:
        self._path = path
        self._peer = peer

    def handler(self, method: MethodDescriptor, channel: grpc.aio.Channel) -> Any:
        """The handler that fits the method's kind."""
        path = self._path
        if not method.client_streaming and not method.server_streaming:
            return grpc.unary_unary_rpc_method_handler(self._unary(channel.unary_unary(path)))
        if not method.client_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(channel.unary_stream(path)))
        if not method.server_streaming:
            return grpc.stream_unary_rpc_method_handler(self._unary(channel.stream_unary(path)))
        call: Any = channel.stream_stream(path)
        return grpc.stream_stream_rpc_method_handler(
            self._stream(lambda requests, **options: RequestStream(call(requests, **options)))
        )

    def _unary(self, call: Any) -> Any:
        async def forward(request: Any, context: Any) -> Any:
            upstream = call(request, timeout=context.time_remaining(), metadata=_forwarded_metadata(context))
            try:
                response = await upstream
                await _pass_metadata(upstream, context)
                return response
            except grpc.aio.AioRpcError as error:
                await self._relay(context, error)
            finally:
                upstream.cancel()  # does nothing to a call that ended

        return forward

    def _stream(self, call: Any) -> Any:
        async def forward(request: Any, context: Any) -> AsyncIterator[Any]:
            upstream = call(request, timeout=context.time_remaining(), metadata=_forwarded_metadata(context))
            try:
                async for response in upstream:
                    yield response
                await _pass_metadata(upstream, context)
            except grpc.aio.AioRpcError as error:
                await self._relay(context, error)
            finally:
                upstream.cancel()

        return forward

    async def _relay(self, context: Any, error: grpc.aio.AioRpcError) -> NoReturn:
        """Ends the caller's call as the service ended ours."""
        code, details = error.code(), error.details() or ""
        trailing = tuple(error.trailing_metadata() or ())
        if code is grpc.StatusCode.UNAVAILABLE and not any(key == _STATUS_DETAILS for key, _ in trailing):
            raise peer_away(self._peer, details) from error
        await context.abort(code, details, trailing)
        raise AssertionError("unreachable: abort raises")


def _forwarded_metadata(context: Any) -> tuple[tuple[str, str | bytes], ...]:
    """The caller's metadata for the service, with the current span's trace context."""
    kept = (
        (key, value if isinstance(value, bytes) or value.isascii() else quote(value, safe=_PRINTABLE))
        for key, value in context.invocation_metadata() or ()
        if key not in _NOT_FORWARDED and not key.startswith(_OURS)
    )
    return (*kept, *call_metadata())


async def _pass_metadata(upstream: Any, context: Any) -> None:
    if trailing := await upstream.trailing_metadata():
        context.set_trailing_metadata(tuple(trailing))
