"""Callers in a process of their own, over HTTP/1.1 and gRPC: at a rate, or as fast as they are answered.

The HTTP side writes prepared bytes and reads no more of a response than its status and length, and the gRPC side passes
serialized messages on, so that the callers cost the machine as little as they can.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import uvloop

Call = Callable[[int], Awaitable[None]]


class Subject:
    """Makes load. One method at a time."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

    def at_rate(self, target: dict[str, Any], rate: float, seconds: float) -> list[float]:
        """Seconds from the moment a request was due to its answer, for each request of an open loop."""
        return self._runner.run(_at_rate(target, rate, seconds))

    def saturated(self, target: dict[str, Any], callers: int, seconds: float) -> float:
        """Requests a second of `callers` callers, each of which asks again once it is answered."""
        return self._runner.run(_saturated(target, callers, seconds))

    def all_of(self, target: dict[str, Any], callers: int, requests: int) -> float:
        """Requests a second while this many requests are made, in the order of the target's bodies."""
        return self._runner.run(_all_of(target, callers, requests))


async def _at_rate(target: dict[str, Any], rate: float, seconds: float) -> list[float]:
    door = await _door(target, 8)
    found: list[float] = []
    began = time.perf_counter()

    async def one(number: int, due: float) -> None:
        await door.ask(number)
        found.append(time.perf_counter() - due)

    tasks = []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        tasks.append(asyncio.create_task(one(number, max(due, time.perf_counter()))))
    await asyncio.gather(*tasks)
    await door.close()
    return found


async def _saturated(target: dict[str, Any], callers: int, seconds: float) -> float:
    door = await _door(target, callers)
    count, end, began = 0, time.perf_counter() + seconds, time.perf_counter()

    async def caller(first: int) -> None:
        nonlocal count
        number = first
        while time.perf_counter() < end:
            await door.ask(number)
            number += callers
            count += 1

    await asyncio.gather(*(caller(at) for at in range(callers)))
    took = time.perf_counter() - began
    await door.close()
    return count / took


async def _all_of(target: dict[str, Any], callers: int, requests: int) -> float:
    door = await _door(target, callers)
    numbers = iter(range(requests))
    began = time.perf_counter()

    async def caller() -> None:
        for number in numbers:
            await door.ask(number)

    await asyncio.gather(*(caller() for _ in range(callers)))
    took = time.perf_counter() - began
    await door.close()
    return requests / took


async def _door(target: dict[str, Any], connections: int) -> _Http | _Grpc:
    """Args:
    target: `kind` (http, unary or stream), `address`, `bodies` (bytes, used in turn), and `path`, `headers`.
    """
    door: _Http | _Grpc = (_Http if target["kind"] == "http" else _Grpc)(target)
    await door.open(connections)
    return door


class _Http:
    """Connections that are kept, each with one request at a time."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._host, _, port = target["address"].rpartition(":")
        self._port = int(port)
        self._requests: Sequence[bytes] = [
            f"POST {target['path']} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {target['key']}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
            for body in target["bodies"]
        ]
        self._free: asyncio.Queue[_Connection] = asyncio.Queue()

    async def open(self, connections: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, made = await loop.create_connection(_Connection, self._host, self._port)
            self._free.put_nowait(made)

    async def ask(self, number: int) -> None:
        connection = await self._free.get()
        await connection.ask(self._requests[number % len(self._requests)])
        self._free.put_nowait(connection)

    async def close(self) -> None:
        while not self._free.empty():
            self._free.get_nowait().transport.close()


class _Connection(asyncio.Protocol):
    transport: Any
    _answered: asyncio.Future[None] | None = None
    _read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self, request: bytes) -> asyncio.Future[None]:
        self._answered = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answered

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if not end or self._answered is None:
            return
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) < size:
            return
        self._read = b""
        answered, self._answered = self._answered, None
        if head.split(b" ", 2)[1] == b"200":
            answered.set_result(None)
        else:
            answered.set_exception(RuntimeError((head + end + body).decode("utf-8", "replace")[:1000]))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answered is not None:
            self._answered.set_exception(error or ConnectionError("the server closed the connection"))


class _Grpc:
    """Several channels, for one is one connection."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._target = target
        self._channels: list[grpc.aio.Channel] = []
        self._calls: list[Any] = []

    async def open(self, connections: int) -> None:
        for at in range(min(4, connections)):
            # A pool of its own, so that the channels do not share one connection.
            channel = grpc.aio.insecure_channel(self._target["address"], options=[("grpc.channel_id", at), _OWN_POOL])
            make = channel.stream_stream if self._target["kind"] == "stream" else channel.unary_unary
            self._channels.append(channel)
            self._calls.append(make(self._target["path"]))

    async def ask(self, number: int) -> None:
        bodies, call = self._target["bodies"], self._calls[number % len(self._calls)]
        body = bodies[number % len(bodies)]
        metadata = (("authorization", f"Bearer {self._target['key']}"),) if self._target.get("key") else None
        if self._target["kind"] == "unary":
            await call(body, metadata=metadata)
            return
        async for _ in call(_once(body), metadata=metadata):
            pass

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


_OWN_POOL = ("grpc.use_local_subchannel_pool", 1)


async def _once(body: bytes) -> Any:
    yield body
