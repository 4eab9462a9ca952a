"""The budget of messages at the gRPC door: who may read when, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from gateway.facade.messages import MessageBudget, MessageInterceptor, MessageLimits
from services.kit.errors import DeadlineExceededError, InvalidArgumentError, ResourceExhaustedError
from tests.waiting import eventually

# Four messages at once, two of one caller.
LIMITS = MessageLimits(bytes_read=400, largest=100, wait_s=30, streams=4)


class Message:
    """A message on its way."""

    def __init__(self, size: int = 1) -> None:
        self.size, self.content = size, b"x"
        self.sent = asyncio.Event()
        self.asked = False

    async def __aiter__(self) -> AsyncIterator[Any]:
        self.asked = True
        await self.sent.wait()
        yield self


class Peer:
    """The context of a call without a key."""

    def __init__(self, address: str = "ipv4:192.0.2.1:5000") -> None:
        self._address = address

    def peer(self) -> str:
        return self._address


def read(budget: MessageBudget, message: Message, caller: str) -> asyncio.Task[Any]:
    return asyncio.ensure_future(budget.read(aiter(message), caller))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_one_caller_has_half_of_the_places_and_others_the_rest() -> None:
    budget = MessageBudget(LIMITS)
    greedy = [Message() for _ in range(5)]
    tasks = [read(budget, each, "a") for each in greedy]
    await settle()
    assert [each.asked for each in greedy] == [True, True, False, False, False]
    others = [Message(), Message(), Message()]
    tasks += [read(budget, each, "b") for each in others]
    await settle()
    assert [each.asked for each in others] == [True, True, False]
    greedy[0].sent.set()
    await settle()
    assert [each.asked for each in greedy] == [True, True, True, False, False]
    for each in (*greedy, *others):
        each.sent.set()
    assert len(await asyncio.gather(*tasks)) == 8


async def test_who_waits_too_long_is_asked_to_retry_and_leaves_no_trace() -> None:
    budget = MessageBudget(MessageLimits(bytes_read=100, largest=100, wait_s=0.05))
    first, second = Message(), Message()
    task = read(budget, first, "a")
    await settle()
    with pytest.raises(ResourceExhaustedError) as found:
        await read(budget, second, "b")
    assert found.value.reason == "MESSAGES_UNDER_WAY"
    assert found.value.retry_after_s
    assert not second.asked
    first.sent.set()
    await task
    second.sent.set()
    assert (await read(budget, second, "b")).size == 1


async def test_the_number_that_may_wait_is_limited() -> None:
    budget = MessageBudget(MessageLimits(bytes_read=100, largest=100, wait_s=30, waiting=1))
    tasks = [read(budget, Message(), "a") for _ in range(2)]
    await settle()
    with pytest.raises(ResourceExhaustedError, match="Too many calls wait"):
        await read(budget, Message(), "a")
    for task in tasks:
        task.cancel()


async def test_a_caller_who_leaves_gives_its_place_to_the_next() -> None:
    budget = MessageBudget(MessageLimits(bytes_read=100, largest=100, wait_s=30))
    messages = [Message(), Message(), Message()]
    tasks = [read(budget, each, "a") for each in messages]
    await settle()
    tasks[1].cancel()  # waits
    tasks[0].cancel()  # is read
    await eventually(lambda: messages[2].asked)
    assert not messages[1].asked
    messages[2].sent.set()
    assert (await tasks[2]).size == 1


async def test_a_message_that_does_not_arrive_ends_its_call() -> None:
    budget = MessageBudget(MessageLimits(bytes_read=100, largest=100, arrival_s=0.05))
    with pytest.raises(DeadlineExceededError, match=r"did not arrive within 0\.05 s"):
        await read(budget, Message(), "a")


async def test_a_call_without_a_message_is_refused() -> None:
    async def nothing() -> AsyncIterator[Any]:
        return
        yield

    with pytest.raises(InvalidArgumentError, match="no request message"):
        await MessageBudget(LIMITS).read(nothing(), "a")


async def test_what_was_read_counts_with_its_size_until_its_call_ends() -> None:
    budget = MessageBudget(LIMITS)

    async def arrived(size: int) -> Any:
        message = Message(size)
        message.sent.set()
        return await read(budget, message, "a")

    for _ in range(4):
        await arrived(100)
    with pytest.raises(ResourceExhaustedError):
        await arrived(1)
    budget.release(100)
    await arrived(100)


async def test_streams_of_requests_are_counted_by_caller_and_in_all() -> None:
    budget = MessageBudget(LIMITS)
    for caller in ("a", "a", "b", "c"):
        budget.open_stream(caller)
    for caller in ("a", "d"):
        with pytest.raises(ResourceExhaustedError, match="Too many streams"):
            budget.open_stream(caller)
    budget.close_stream("b")
    with pytest.raises(ResourceExhaustedError, match="Too many streams"):
        budget.open_stream("a")
    budget.open_stream("d")


async def test_an_unknown_method_stays_unknown() -> None:
    async def unknown(_: Any) -> None:
        return None

    reader: Any = MessageInterceptor(MessageBudget(LIMITS), MessageBudget(LIMITS))
    assert await reader.intercept_service(unknown, object()) is None


async def test_why_a_message_of_a_stream_was_refused_reaches_the_caller() -> None:
    budget = MessageBudget(LIMITS)
    budget.hold(350)

    async def forward(requests: AsyncIterator[bytes], _: Any) -> None:
        # As a client of gRPC does, which cancels its call when its requests fail.
        try:
            async for _request in requests:
                pass
        except ResourceExhaustedError:
            raise asyncio.CancelledError from None

    async def found(_: Any) -> Any:
        return grpc.stream_unary_rpc_method_handler(forward)

    async def sent(handler: Any, *sizes: int) -> AsyncIterator[Any]:
        for size in sizes:
            yield handler.request_deserializer(b"x" * size)

    handler: Any = await MessageInterceptor(MessageBudget(LIMITS), budget).intercept_service(found, object())  # type: ignore[arg-type]
    with pytest.raises(ResourceExhaustedError, match="no memory left for this message"):
        await handler.stream_unary(sent(handler, 40, 60), Peer())
    # Only the newest message of a stream counts, and nothing of one that has ended.
    await handler.stream_unary(sent(handler, 50, 50, 50), Peer())
    budget.hold(50)


async def test_strangers_take_nothing_from_keys_and_no_one_takes_the_probes_turn() -> None:
    keys, strangers = MessageBudget(LIMITS), MessageBudget(MessageLimits(bytes_read=200, largest=100, wait_s=0.05))
    asked: list[str] = []

    async def answer(_: bytes, context: Any) -> None:
        asked.append(context.peer())

    async def found(_: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(answer)

    handler: Any = await MessageInterceptor(keys, strangers).intercept_service(found, object())  # type: ignore[arg-type]

    async def never() -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    async def one() -> AsyncIterator[Any]:
        yield handler.request_deserializer(b"x")

    hold_up = [asyncio.ensure_future(handler.stream_unary(never(), Peer(f"ipv4:192.0.2.{n}:1"))) for n in (1, 1, 2)]
    await settle()
    with pytest.raises(ResourceExhaustedError):
        await handler.stream_unary(one(), Peer("ipv4:192.0.2.3:1"))
    await handler.stream_unary(one(), Peer("unix:/state/sockets/gateway-1"))
    assert asked == ["unix:/state/sockets/gateway-1"]
    assert (await keys.read(one(), "a")).size == 1
    for task in hold_up:
        task.cancel()
    await asyncio.gather(*hold_up, return_exceptions=True)


async def test_streams_of_the_connection_with_the_most_unfinished_are_ended() -> None:
    budget = MessageBudget(MessageLimits(bytes_read=1 << 20, largest=100, unfinished=10_000, streams=40))
    ended: list[str] = []

    async def wait(requests: AsyncIterator[bytes], context: Any) -> None:
        try:
            async for _request in requests:
                pass
        finally:
            ended.append(context.peer())

    async def found(_: Any) -> Any:
        return grpc.stream_unary_rpc_method_handler(wait)

    async def never() -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    handler: Any = await MessageInterceptor(MessageBudget(LIMITS), budget).intercept_service(found, object())  # type: ignore[arg-type]
    greedy, busy, idle = "ipv4:192.0.2.1:1", "ipv4:192.0.2.2:1", "ipv4:192.0.2.3:1"
    calls = {peer: asyncio.ensure_future(handler.stream_unary(never(), Peer(peer))) for peer in (greedy, busy, idle)}
    await settle()
    received = {greedy: 50_000, busy: 90_000, idle: 100}
    budget.look(received)  # what came before does not count
    for _ in range(20):
        # Finished messages account for what a busy connection receives.
        budget.finish(busy, 8000)
        budget.look({greedy: 55_000, busy: received[busy] + 9000, idle: 100})
        received[busy] += 9000
    assert not ended
    budget.look({greedy: 61_000, busy: received[busy], idle: 100})
    await settle()
    assert ended == [greedy]
    with pytest.raises(ResourceExhaustedError, match="unfinished on this connection"):
        await calls[greedy]
    for call in calls.values():
        call.cancel()
    await asyncio.gather(*calls.values(), return_exceptions=True)
