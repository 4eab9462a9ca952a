"""Bounds the memory of the messages that callers of the gRPC door send.

gRPC's core reads a message whole, as fast as the caller sends it, and its size is known only when all of it is there. A
message that is being read therefore counts as the largest one, and as its own size from then until its call ends. For
that the handlers read their messages themselves: to gRPC each method takes a stream.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc

from gateway.access import CALLER
from services.kit.errors import DeadlineExceededError, InvalidArgumentError, ResourceExhaustedError

_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class MessageLimits:
    """Limits of the messages of one process; sizes in bytes, times in seconds."""

    bytes_read: int = 256 * 1024 * 1024
    """Memory for messages that are being read, and as much again for those whose calls are being answered."""
    largest: int = 64 * 1024 * 1024
    """Size of the largest message."""
    arrival_s: float = 60.0
    """Time for the message of a call to arrive. Streams of requests may pause as long as they like."""
    wait_s: float = 5.0
    """Time that a call waits for its message to be read, while the others use the memory."""
    waiting: int = 1000
    """Calls that may wait so; each may have 64 KiB in gRPC's core."""
    streams: int = 256
    """Calls with a stream of requests: each may have one unfinished message that nothing else bounds."""


class MessageBudget:
    """The memory of messages in this process. No caller gets more than half of it while messages are read."""

    def __init__(self, limits: MessageLimits) -> None:
        self.limits = limits
        self._places = max(1, limits.bytes_read // limits.largest)
        self._reading: Counter[str] = Counter()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()
        self._held = 0
        self._streams: Counter[str] = Counter()

    async def read(self, requests: AsyncIterator[_Sized], caller: str) -> _Sized:
        """The message of a call with one request; give its size back (`release`) when the call has ended.

        Raises:
            ResourceExhaustedError: other messages use the memory.
            DeadlineExceededError: it does not arrive in time.
            InvalidArgumentError: the caller sends none.
        """
        await self._enter(caller)
        scope = asyncio.timeout(self.limits.arrival_s)
        try:
            async with scope:
                message = await anext(requests)
            self.hold(message.size)
            return message
        except StopAsyncIteration:
            raise InvalidArgumentError("The call has no request message.", reason="NO_MESSAGE") from None
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineExceededError(
                f"The request message did not arrive within {self.limits.arrival_s:g} s.", reason="MESSAGE_TOO_SLOW"
            ) from error
        finally:
            self._leave(caller)

    def hold(self, size: int) -> None:
        """Counts a message that has been read.

        Raises:
            ResourceExhaustedError: those that are there use the memory.
        """
        if self._held and self._held + size > self.limits.bytes_read:
            raise _exhausted("The gateway has no memory left for this message.")
        self._held += size

    def release(self, size: int) -> None:
        """Forgets a message that was counted."""
        self._held -= size

    def open_stream(self, caller: str) -> None:
        """Counts a call with a stream of requests.

        Raises:
            ResourceExhaustedError: there are too many, in all or of this caller.
        """
        if self._streams.total() >= self.limits.streams or self._streams[caller] >= max(1, self.limits.streams // 2):
            raise _exhausted("Too many streams of requests are open.")
        self._streams[caller] += 1

    def close_stream(self, caller: str) -> None:
        """Forgets one."""
        _subtract(self._streams, caller)

    async def _enter(self, caller: str) -> None:
        if self._is_free(caller):
            self._reading[caller] += 1
            return
        if len(self._waiting) >= self.limits.waiting:
            raise _exhausted("Too many calls wait for their messages to be read.")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((caller, turn))
        try:
            async with asyncio.timeout(self.limits.wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # its turn came at the same moment
                self._leave(caller)
            else:
                self._waiting.remove((caller, turn))
            if isinstance(error, TimeoutError):
                raise _exhausted("The gateway has no memory left to read this message.") from error
            raise

    def _leave(self, caller: str) -> None:
        _subtract(self._reading, caller)
        for each in list(self._waiting):
            if self._reading.total() >= self._places:
                return
            if self._is_free(each[0]):
                self._waiting.remove(each)
                if not each[1].done():
                    self._reading[each[0]] += 1
                    each[1].set_result(None)

    def _is_free(self, caller: str) -> bool:
        return self._reading.total() < self._places and self._reading[caller] < max(1, self._places // 2)


def _subtract(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if not counter[name]:
        del counter[name]


def _exhausted(message: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(f"{message} Retry later.", reason="MESSAGES_UNDER_WAY", retry_after_s=_RETRY_S)


@dataclass(frozen=True, slots=True)
class _Sized:
    """A message with its size on the wire."""

    size: int
    content: Any


class _Requests:
    """The messages of a stream; the newest one is counted."""

    def __init__(self, budget: MessageBudget, requests: AsyncIterator[_Sized], caller: str) -> None:
        budget.open_stream(caller)
        self._budget, self._requests, self._caller = budget, aiter(requests), caller
        self._size = 0
        self._closed = False
        self.refusal: ResourceExhaustedError | None = None
        """Why a message was refused; a client of gRPC that takes the messages would not pass the error on."""

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        self._budget.release(self._size)
        self._size = 0
        message = await anext(self._requests)
        if not self._closed:
            try:
                self._budget.hold(message.size)
            except ResourceExhaustedError as error:
                self.refusal = error
                raise
            self._size = message.size
        return message.content

    def close(self) -> None:
        self._closed = True
        self._budget.release(self._size)
        self._size = 0
        self._budget.close_stream(self._caller)


class MessageInterceptor(grpc.aio.ServerInterceptor):
    """Reads each call's messages within the budget. Runs inside the key check and the kit's ErrorInterceptor."""

    def __init__(self, budget: MessageBudget, strangers: MessageBudget) -> None:
        """Args:
        budget: of callers with a key.
        strangers: of callers of open methods, by address, so that they take nothing from the others; the same one
            where no keys are required.
        """
        self._budget, self._strangers = budget, strangers
        # The mesh's own user at a Unix socket, whose probes must be answered whatever the others do.
        self._own = MessageBudget(MessageLimits(bytes_read=1 << 50, streams=1 << 30))

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Returns the call's handler as one that takes a stream of requests."""
        handler = await continuation(details)
        if handler is None:
            return None
        inner = handler.request_deserializer

        def sized(data: bytes) -> _Sized:
            return _Sized(len(data), data if inner is None else inner(data))

        shape = {"request_deserializer": sized, "response_serializer": handler.response_serializer}
        if not handler.response_streaming:
            behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
            return grpc.stream_unary_rpc_method_handler(self._unary(behaviour, handler.request_streaming), **shape)
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        # A servicer that writes its responses itself, as that of health does, is called like one with one response.
        wrap = self._unary if inspect.iscoroutinefunction(behaviour) else self._stream
        return grpc.stream_stream_rpc_method_handler(wrap(behaviour, handler.request_streaming), **shape)

    def _unary(self, behaviour: Any, streaming: bool) -> Callable[[Any, Any], Awaitable[Any]]:
        async def call(requests: AsyncIterator[_Sized], context: Any) -> Any:
            budget, caller = self._share(context)
            if streaming:
                stream = _Requests(budget, requests, caller)
                try:
                    return await behaviour(stream, context)
                except BaseException as error:
                    raise stream.refusal or error from error.__cause__
                finally:
                    stream.close()
            message = await budget.read(requests, caller)
            try:
                return await behaviour(message.content, context)
            finally:
                budget.release(message.size)

        return call

    def _stream(self, behaviour: Any, streaming: bool) -> Callable[[Any, Any], AsyncGenerator[Any, None]]:
        async def call(requests: AsyncIterator[_Sized], context: Any) -> AsyncGenerator[Any, None]:
            budget, caller = self._share(context)
            if streaming:
                stream = _Requests(budget, requests, caller)
                given, done = stream, stream.close
            else:
                message = await budget.read(requests, caller)
                given, done = message.content, lambda: budget.release(message.size)
            try:
                async with aclosing(behaviour(given, context)) as responses:
                    async for response in responses:
                        yield response
            finally:
                done()

        return call

    def _share(self, context: Any) -> tuple[MessageBudget, str]:
        """The budget of a call, and who is given a part of it."""
        caller = CALLER.get()
        if caller is not None:
            return self._budget, caller.key.key_id
        peer: str = context.peer()
        if peer.startswith("unix:"):
            return self._own, ""
        return self._strangers, peer.rpartition(":")[0]
