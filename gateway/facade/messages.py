"""Bounds the memory of the messages that callers of the gRPC door send.

gRPC's core reads a message whole, as fast as the caller sends it, and its size is known only when all of it is there. A
message that is being read therefore counts as the largest one, and as its own size from then until its call ends. For
that the handlers read their messages themselves: to gRPC each method takes a stream.

A stream of requests may pause, so its messages cannot count as the largest ones. What their connections have received
and no finished message accounts for is unfinished; where that becomes too much, the streams of the connection with the
most of it are ended.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from gateway.access import CALLER
from gateway.facade.sockets import bytes_received
from services.kit.errors import DeadlineExceededError, InvalidArgumentError, ResourceExhaustedError

LOOK_S = 0.25
"""How often unfinished messages of streams are measured."""
_RETRY_S = 2.0
# What a call takes on the wire beside its message, at most: headers that are compressed, and frames.
_BESIDE = 1024


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
    """Calls with a stream of requests."""
    unfinished: int = 256 * 1024 * 1024
    """Memory for unfinished messages of these streams, measured every `LOOK_S`."""


class MessageBudget:
    """The memory of messages in this process. No caller gets more than half of it while messages are read."""

    def __init__(self, limits: MessageLimits) -> None:
        self.limits = limits
        self._places = max(1, limits.bytes_read // limits.largest)
        self._reading: Counter[str] = Counter()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()
        self._held = 0
        self._streams: Counter[str] = Counter()
        self.waiting: set[_Requests] = set()
        """Streams whose next message has not arrived."""
        self._finished: Counter[str] = Counter()
        self._unfinished: dict[str, tuple[int, int]] = {}

    async def run(self) -> None:
        """Ends streams with too much of unfinished messages, until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            # Fewer cannot have more than that.
            if len(self.waiting) * self.limits.largest > self.limits.unfinished:
                self.look(await asyncio.to_thread(bytes_received, {each.peer for each in self.waiting}))
            else:
                self._finished.clear()
                self._unfinished.clear()

    def look(self, received: Mapping[str, int]) -> None:
        """Measures once; `received` are the bytes of each connection, by peer."""
        shares: dict[str, int] = {}
        for peer, total in received.items():
            before, unfinished = self._unfinished.get(peer, (total, 0))
            unfinished = max(0, unfinished + total - before - self._finished.pop(peer, 0))
            self._unfinished[peer] = (total, unfinished)
            shares[peer] = unfinished
        for peer in self._unfinished.keys() - received.keys():
            del self._unfinished[peer]
        self._finished.clear()
        while sum(shares.values()) > self.limits.unfinished:
            worst = max(shares, key=lambda peer: shares[peer])
            del shares[worst], self._unfinished[worst]
            for stream in [each for each in self.waiting if each.peer == worst]:
                stream.end(_exhausted("The gateway has no memory left for what is unfinished on this connection."))

    def finish(self, peer: str, size: int) -> None:
        """Notes a message that is complete."""
        if self.waiting:
            self._finished[peer] += size + _BESIDE

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

    def __init__(self, budget: MessageBudget, requests: AsyncIterator[_Sized], caller: str, peer: str) -> None:
        budget.open_stream(caller)
        self._budget, self._requests, self._caller = budget, aiter(requests), caller
        self.peer = peer
        self._reader: asyncio.Task[Any] | None = None
        self._size = 0
        self._closed = False
        self.refusal: ResourceExhaustedError | None = None
        """Why a message was refused; a client of gRPC that takes the messages would not pass the error on."""

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        self._budget.release(self._size)
        self._size = 0
        self._reader = asyncio.current_task()
        self._budget.waiting.add(self)
        try:
            message = await anext(self._requests)
        except asyncio.CancelledError:
            if self.refusal is None or self._reader is None:
                raise
            self._reader.uncancel()
            raise self.refusal from None
        finally:
            self._budget.waiting.discard(self)
            self._reader = None
        self._budget.finish(self.peer, message.size)
        if not self._closed:
            try:
                self._budget.hold(message.size)
            except ResourceExhaustedError as error:
                self.refusal = error
                raise
            self._size = message.size
        return message.content

    def end(self, refusal: ResourceExhaustedError) -> None:
        """Ends the stream, whose next message has not arrived."""
        self.refusal = refusal
        if self._reader is not None:
            self._reader.cancel()

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
                stream = _Requests(budget, requests, caller, context.peer())
                try:
                    return await behaviour(stream, context)
                except BaseException as error:
                    if stream.refusal is not None:
                        raise stream.refusal from error
                    raise
                finally:
                    stream.close()
            message = await budget.read(requests, caller)
            budget.finish(context.peer(), message.size)
            try:
                return await behaviour(message.content, context)
            finally:
                budget.release(message.size)

        return call

    def _stream(self, behaviour: Any, streaming: bool) -> Callable[[Any, Any], AsyncGenerator[Any, None]]:
        async def call(requests: AsyncIterator[_Sized], context: Any) -> AsyncGenerator[Any, None]:
            budget, caller = self._share(context)
            stream: _Requests | None = None
            if streaming:
                given = stream = _Requests(budget, requests, caller, context.peer())
                done = stream.close
            else:
                message = await budget.read(requests, caller)
                budget.finish(context.peer(), message.size)
                given, done = message.content, partial(budget.release, message.size)
            try:
                async with aclosing(behaviour(given, context)) as responses:
                    async for response in responses:
                        yield response
            except BaseException as error:
                if stream is not None and stream.refusal is not None:
                    raise stream.refusal from error
                raise
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
