"""Two gateway processes on one port: one is killed, and what keys may use holds over both."""

from __future__ import annotations

import http.client
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.keys.key import KeyLimits
from gateway.keys.store import KeyStore
from tests.faults.gateway_process import GatewayProcess, running_gateway
from tests.service_process import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.real


class Pair:
    """Processes 1 and 2 of a gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = {
            "BIND": f"127.0.0.1:{free_port()}",
            "HTTP_BIND": f"127.0.0.1:{free_port()}",
            "GATEWAY_PROCESSES": "2",
            "GATEWAY_SOCKETS": str(folder),
        }

    @property
    def door(self) -> str:
        """host:port of both."""
        return self.settings["HTTP_BIND"]

    @contextmanager
    def process(self, number: int) -> Iterator[GatewayProcess]:
        """Runs one of them for the length of the block."""
        with running_gateway(self.folder, {**self.settings, "GATEWAY_PROCESS": str(number)}) as running:
            yield running

    def create_key(self, limits: KeyLimits) -> str:
        """A key that the processes will know."""
        store = KeyStore.open(f"sqlite:///{self.folder / 'gateway.sqlite'}")
        _, text = store.create("limited", limits=limits)
        store.close()
        return text

    def connect_to(self, process: GatewayProcess) -> http.client.HTTPConnection:
        """A connection that the kernel gave to this process."""
        host, _, port = self.door.partition(":")
        while True:
            connection = http.client.HTTPConnection(host, int(port), timeout=30)
            connection.connect()
            own = connection.sock.getsockname()[1]
            wait_until(partial(_owners, own), "the connection is accepted")
            if process.process.pid in _owners(own):
                return connection
            connection.close()

    def served(self) -> set[str]:
        """The processes whose metrics any of them gives."""
        return set(re.findall(r'^requests_total\{.*process="(\d)"', self.metrics(), re.MULTILINE))

    def metrics(self) -> str:
        """What Prometheus reads."""
        return httpx.get(f"http://{self.door}/metrics", timeout=30).text


def _owners(port: int) -> set[int]:
    return {
        each.pid
        for each in psutil.net_connections("tcp4")
        if each.raddr and each.raddr.port == port and each.pid not in (None, os.getpid())
    }


@pytest.fixture
def pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="tm-") as short:  # sockets lie in it
        yield Pair(Path(short))


def _ask(connection: http.client.HTTPConnection, key: str) -> int:
    connection.request("GET", "/v1/models", headers={"x-api-key": key})
    response = connection.getresponse()
    response.read()
    return response.status


def test_a_killed_process_takes_its_own_connections_only_and_comes_back(pair: Pair) -> None:
    with pair.process(1) as one, ExitStack() as second:
        two = second.enter_context(pair.process(2))
        key = one.key
        mine, others = ([pair.connect_to(process) for _ in range(3)] for process in (two, one))
        # Without inference no model is known: an answer all the same, and one after the check of the key.
        assert {_ask(each, key) for each in (*mine, *others)} == {503}
        wait_until(lambda: pair.served() == {"1", "2"}, "metrics of both processes")
        two.process.kill()
        two.process.wait()
        for each in mine:
            with pytest.raises((http.client.HTTPException, OSError)):
                _ask(each, key)
        assert {_ask(each, key) for each in others} == {503}
        for _ in range(8):  # whoever comes now is answered by the one that is left
            assert httpx.get(f"http://{pair.door}/v1/models", headers={"x-api-key": key}).status_code == 503
        assert pair.served() == {"1"}
        with pair.process(2) as again:
            assert _ask(pair.connect_to(again), key) == 503
            wait_until(lambda: pair.served() == {"1", "2"}, "metrics of both processes")


def test_each_process_is_probed_on_a_socket_of_its_own(pair: Pair) -> None:
    with pair.process(1), pair.process(2):
        for number in (1, 2):
            with grpc.insecure_channel(f"unix:{pair.folder / f'gateway-{number}'}") as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=10)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_rate_holds_over_both_processes(pair: Pair) -> None:
    with pair.process(1) as one, pair.process(2) as two:
        key = pair.create_key(KeyLimits(requests_per_s=5))
        connections = [pair.connect_to(process) for process in (one, two)]
        began = time.monotonic()
        statuses = [_ask(connections[number % 2], key) for number in range(40)]
        allowed = 5 + 5 * (time.monotonic() - began)
        assert 5 <= statuses.count(503) <= allowed
        assert set(statuses) == {503, 429}


def test_requests_at_once_are_counted_over_both_and_forgotten_with_a_process_that_died(pair: Pair) -> None:
    with pair.process(1) as one, ExitStack() as second:
        two = second.enter_context(pair.process(2))
        key = pair.create_key(KeyLimits(concurrent=1))
        # A process that does not know the key yet would refuse the request that is to be held.
        wait_until(lambda: _ask(pair.connect_to(two), key) == 503, "the key is known")
        held = pair.connect_to(two)
        held.putrequest("POST", "/v1/feedback")
        held.putheader("x-api-key", key)
        held.putheader("content-length", "10")
        held.endheaders(b"{")
        other = pair.connect_to(one)
        wait_until(lambda: _ask(other, key) == 429, "the request under way is counted")
        two.process.kill()
        two.process.wait()
        with pair.process(2):
            wait_until(lambda: _ask(other, key) == 503, "the dead process's request is forgotten")


def test_a_stranger_cannot_share_the_port(pair: Pair) -> None:
    with pair.process(1) as one, socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", one.http))
