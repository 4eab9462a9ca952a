"""What the gateway sees of its TCP connections, and which ones of an address it ends when there are too many."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from operator import eq

import pytest

from gateway.facade.sockets import ClientConnections, bytes_received
from tests.waiting import wait_for


def test_the_bytes_of_a_connection_are_those_that_arrived() -> None:
    for family, host, name in (
        (socket.AF_INET, "127.0.0.1", "ipv4:127.0.0.1"),
        (socket.AF_INET6, "::1", "ipv6:%5B::1%5D"),
    ):
        with socket.create_server((host, 0), family=family) as server:
            with socket.create_connection(server.getsockname()[:2]) as client, server.accept()[0] as connection:
                peer = f"{name}:{client.getsockname()[1]}"
                client.sendall(b"x" * 5000)
                wait_for(partial(bytes_received, {peer, "ipv4:192.0.2.1:1"}), partial(eq, {peer: 5000}))
                assert connection.recv(10_000)  # it is still open
            assert bytes_received({peer}) == {}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(stack: ExitStack, server: socket.socket, count: int, address: str) -> list[socket.socket]:
    """Clients of a server from one address, each accepted."""
    clients = []
    for _ in range(count):
        client = socket.create_connection(server.getsockname(), timeout=10, source_address=(address, 0))
        clients.append(stack.enter_context(client))
        stack.enter_context(server.accept()[0])
    return clients


def is_open(client: socket.socket) -> bool:
    """Whether the other end, which has sent nothing, has not closed it."""
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True


def test_the_newest_connections_of_an_address_are_ended(stack: ExitStack) -> None:
    counted = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    spared = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    refused: list[str] = []
    connections = ClientConnections(2, {spared.getsockname()[1]}, refused.append)
    early = connect(stack, counted, 2, "127.0.0.2")
    connections.look()
    others = [*connect(stack, counted, 2, "127.0.0.3"), *connect(stack, spared, 3, "127.0.0.2")]
    late = connect(stack, counted, 2, "127.0.0.2")
    connections.look()
    assert [is_open(client) for client in late] == [False, False]
    assert all(is_open(client) for client in (*early, *others))
    assert refused == ["too_many_connections"] * 2
