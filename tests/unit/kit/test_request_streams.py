"""A peer that ends a call while requests are still being written to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from services.kit.grpc.request_streams import RequestStream
from tests.grpc_servers import serving

_METHOD = "/tests.Streams/Stream"
# Of calls read as they are, about every second one ends as INTERNAL.
_CALLS = 160
_AT_ONCE = 16


class Early(grpc.GenericRpcHandler):
    """Answers and ends each call at its first request."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of every method."""
        return grpc.stream_stream_rpc_method_handler(self._respond)

    async def _respond(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request
            break
        context.set_trailing_metadata((("why", "early"),))
        if self._code is not grpc.StatusCode.OK:
            await context.abort(self._code, "no more", (("why", "early"),))


async def _requests() -> AsyncIterator[bytes]:
    for _ in range(20):
        yield b"x" * 100


async def _outcome(channel: grpc.aio.Channel) -> tuple[int, str, str | None, Any]:
    method: Any = channel.stream_stream(_METHOD)
    call = RequestStream(method(_requests(), timeout=30))
    count = 0
    code, details = "OK", None
    try:
        async for _ in call:
            count += 1
    except grpc.aio.AioRpcError as error:
        code, details = error.code().name, error.details()
    return count, code, details, dict(await call.trailing_metadata()).get("why")


@pytest.mark.parametrize(
    ("code", "details"), [(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more"), (grpc.StatusCode.OK, None)]
)
async def test_a_call_ends_as_its_peer_ended_it(code: grpc.StatusCode, details: str | None) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Early(code),))
    async with serving(server) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        outcomes = set()
        for _ in range(_CALLS // _AT_ONCE):
            outcomes |= set(await asyncio.gather(*(_outcome(channel) for _ in range(_AT_ONCE))))
    assert outcomes == {(1, code.name, details, "early")}
