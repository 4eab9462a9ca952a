"""How a call whose requests are a stream ended, where its peer ended it before it had read all of them.

grpc.aio ends such a call with its own failed write of a request: INTERNAL, "Internal error from Core". This status
takes the place of the peer's, which is set just before it or just after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, NamedTuple

import grpc

_FAILED_WRITE = (grpc.StatusCode.INTERNAL, "Internal error from Core")
# For the peer's status, which came with what made the write fail. More than a busy event loop needs.
_STATUS_S = 5.0


_LOOK_S = 0.001


class _Status(NamedTuple):
    code: grpc.StatusCode
    details: str
    trailing_metadata: Any


class RequestStream:
    """A call of grpc.aio with a stream of requests and a stream of responses, which ends as its peer ended it."""

    def __init__(self, call: Any) -> None:
        """To be made in the same step as the call: a status that was replaced before is lost."""
        self._call = call
        self._ended: _Status | None = None
        call.add_done_callback(self._note)

    def __aiter__(self) -> AsyncGenerator[Any]:
        """The responses.

        Raises:
            AioRpcError: as the peer ended the call.
        """
        return self._responses()

    async def trailing_metadata(self) -> Any:
        """What the peer sent at the end of the call, which has ended."""
        return (await self._status()).trailing_metadata

    def done(self) -> bool:
        """Whether the call has ended."""
        return bool(self._call.done())

    def cancel(self) -> None:
        """Ends the call; does nothing to one that ended."""
        self._call.cancel()

    async def _responses(self) -> AsyncGenerator[Any]:
        try:
            async for response in self._call:
                yield response
        except grpc.aio.AioRpcError as error:
            if (error.code(), error.details()) != _FAILED_WRITE:
                raise
            status = await self._status()
            if status.code is not grpc.StatusCode.OK:
                raise grpc.aio.AioRpcError(
                    status.code, error.initial_metadata(), status.trailing_metadata, status.details
                ) from None

    def _note(self, _call: Any) -> None:
        # grpc.aio calls this with the first status only, in the step that sets it, before another can take its place.
        status = _Status(*map(_result, (self._call.code(), self._call.details(), self._call.trailing_metadata())))
        if status[:2] != _FAILED_WRITE:
            self._ended = status

    async def _status(self) -> _Status:
        """The peer's status; where the failed write came first, the one that takes its place."""
        call, loop = self._call, asyncio.get_running_loop()
        end = loop.time() + _STATUS_S
        while self._ended is None:
            status = _Status(await call.code(), await call.details(), await call.trailing_metadata())
            if status[:2] != _FAILED_WRITE or loop.time() > end:
                self._ended = status
            else:
                await asyncio.sleep(_LOOK_S)
        return self._ended


def _result(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        return finished.value
    coroutine.close()
    raise AssertionError("a call that has ended knows how")
