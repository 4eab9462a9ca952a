"""A second process of a gateway joins one that has all the connections: callers come to it, and no call fails."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import openai
import psutil
import pytest
from tidemill.inference.v1.inference_service_pb2 import PredictRequest, StreamGenerateRequest
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from tests.client_wheel import build_wheel, imported
from tests.faults.gateway_process import GatewayProcess, running_gateway
from tests.integration.gateway.fake_peers import WORDS, FakePeers
from tests.service_process import free_port
from tests.waiting import wait_until

CALLERS = 4
"""Of each kind."""


class Processes:
    """Up to two processes of one gateway whose connections live for about a second, and what is behind them."""

    def __init__(self, folder: Path, peers: str) -> None:
        self._folder = folder
        self.http, self.grpc = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self._settings = {
            "BIND": self.grpc,
            "HTTP_BIND": self.http,
            "GATEWAY_PROCESSES": "2",
            "GATEWAY_SOCKETS": str(folder),
            "CONNECTION_AGE_S": "1",
            "INFERENCE_ADDRESS": peers,
            "PIPELINE_ADDRESS": peers,
            "TRITON_GRPC": peers,
        }

    @contextmanager
    def process(self, number: int) -> Iterator[GatewayProcess]:
        """Runs one of them for the length of the block."""
        with running_gateway(self._folder, {**self._settings, "GATEWAY_PROCESS": str(number)}) as running:
            yield running


def connections(process: GatewayProcess, door: str) -> int:
    """How many a process has at a door."""
    port = int(door.rpartition(":")[2])
    found = psutil.Process(process.process.pid).net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in found)


class Callers:
    """Threads that call again and again, each on a connection that it keeps, until they are ended."""

    def __init__(self) -> None:
        self.failed: list[BaseException] = []
        self.answered: list[int] = []
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()

    def add(self, call: Callable[[], object]) -> None:
        """One more."""
        number = len(self._threads)
        self.answered.append(0)

        def run() -> None:
            while not self._ended.is_set():
                try:
                    call()
                    self.answered[number] += 1
                except Exception as error:
                    self.failed.append(error)
                time.sleep(0.02)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def end(self) -> None:
        """Ends them."""
        self._ended.set()
        for thread in self._threads:
            thread.join(60)


@pytest.fixture(scope="module")
def client_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with imported(build_wheel(tmp_path_factory.mktemp("wheel"))) as module:
        yield module


@pytest.fixture
def peers() -> Iterator[tuple[FakePeers, asyncio.AbstractEventLoop]]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> FakePeers:
        made = FakePeers()
        await made.start()
        return made

    made = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    yield made, loop
    asyncio.run_coroutine_threadsafe(made.stop(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def test_callers_with_lasting_connections_come_to_a_second_process_and_no_call_fails(
    tmp_path: Path, peers: tuple[FakePeers, asyncio.AbstractEventLoop], client_package: ModuleType
) -> None:
    fakes, loop = peers
    pair, callers = Processes(tmp_path, fakes.address), Callers()
    with pair.process(1) as one, ExitStack() as stack:
        key = one.key
        metadata = (("x-api-key", key),)
        asked = PredictRequest(model="models/reviews", texts=["good"])

        def opened() -> tuple[openai.OpenAI, Any]:
            # Channels of one process would share a connection.
            channel = grpc.insecure_channel(pair.grpc, [("grpc.use_local_subchannel_pool", 1)])
            stub: Any = InferenceServiceStub(stack.enter_context(channel))
            client = openai.OpenAI(base_url=f"http://{pair.http}/v1", api_key=key, max_retries=0)
            return stack.enter_context(client), stub

        first, stub = opened()
        wait_until(lambda: {each.id for each in first.models.list()} > {"headlines"}, "the routes")
        # Streams that are open while their connections grow old.
        chat: Any = {"model": "headlines", "messages": [{"role": "user", "content": "hold"}], "stream": True}
        over_http = iter(first.chat.completions.create(**chat))
        over_grpc = stub.StreamGenerate(
            StreamGenerateRequest(model="models/headlines", text="hold"), metadata=metadata, timeout=300
        )
        texts = [next(over_grpc).text_delta]
        for _ in range(CALLERS):
            client, other = opened()
            callers.add(lambda client=client: client.models.list())  # type: ignore[misc]
            callers.add(lambda stub=other: stub.Predict(asked, metadata=metadata, timeout=60))  # type: ignore[misc]
        ours = stack.enter_context(client_package.Client(pair.grpc, key=key, retries=0))
        callers.add(lambda: ours.predict("reviews", ["good"]))
        wait_until(lambda: min(callers.answered) > 0, "an answer for each")
        with pair.process(2) as two:
            for door in (pair.http, pair.grpc):
                wait_until(lambda door=door: connections(two, door), f"connections of the second process at {door}")  # type: ignore[misc]
            before = list(callers.answered)
            wait_until(
                lambda: all(now > then + 100 for now, then in zip(callers.answered, before, strict=True)), "more calls"
            )
            callers.end()
            loop.call_soon_threadsafe(fakes.seen.released.set)
            texts += [each.text_delta for each in over_grpc]
            assert "".join(texts) == "".join(WORDS)
            assert "".join(each.choices[0].delta.content or "" for each in over_http if each.choices) == "".join(WORDS)
    assert callers.failed == []


def test_a_request_behind_the_last_one_of_an_old_connection_is_answered(tmp_path: Path) -> None:
    with (
        running_gateway(tmp_path, {"CONNECTION_AGE_S": "1"}) as gateway,
        socket.create_connection(("127.0.0.1", gateway.http), timeout=60) as connection,
    ):
        request = f"GET /v1/batches HTTP/1.1\r\nhost: x\r\nx-api-key: {gateway.key}\r\n\r\n".encode()
        answers = connection.makefile("rb")

        def answer() -> dict[bytes, bytes]:
            assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
            headers = dict(line.rstrip().lower().split(b": ", 1) for line in iter(answers.readline, b"\r\n"))
            answers.read(int(headers[b"content-length"]))
            return headers

        connection.sendall(request)
        assert b"connection" not in answer()
        time.sleep(1.2)
        connection.sendall(request * 3)
        assert [answer().get(b"connection") for _ in range(3)] == [None, None, b"close"]
        assert answers.read() == b""
