"""The cleaning service as a process of its own on a real Kafka, and what its tests ask of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tidemill.cleaning.v1 import cleaning_service_pb2_grpc as stubs

from infra.stack.testing import running_parts
from services.kit.bus.kafka import ensure_topics

_ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka with all topics."""
    with running_parts({"kafka"}, tmp_path_factory.mktemp("stack")) as stack:
        ensure_topics(stack.kafka_bootstrap)
        yield stack.kafka_bootstrap


@dataclass
class CleaningProcess:
    """`python -m services.cleaning` with a state that outlives a kill."""

    bootstrap: str
    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    _open: grpc.Channel | None = None

    @property
    def log(self) -> Path:
        """Its log, over all restarts."""
        return self.folder / "cleaning.log"

    def start(self) -> None:
        """Starts it and waits until it serves."""
        self.launch()
        health: Any = health_pb2_grpc.HealthStub(self._channel())
        deadline = time.monotonic() + 60
        while True:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=2)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                time.sleep(0.1)

    def launch(self) -> None:
        """Starts it and does not wait."""
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        environment = {
            **os.environ,
            "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'protos' / 'gen'}",
            "TIDEMILL_BIND": f"127.0.0.1:{self.port}",
            "TIDEMILL_KAFKA_BOOTSTRAP": self.bootstrap,
            "TIDEMILL_DATABASE_URL": f"sqlite:///{self.folder}/cleaning.sqlite",
            "TIDEMILL_ARTIFACTS_URL": f"file://{self.folder}/artifacts",
            "TIDEMILL_AWAIT_TIMEOUT_S": "60",
        }
        environment.pop("TIDEMILL_OTLP_ENDPOINT", None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.cleaning"], env=environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._close()

    def stop(self) -> int:
        """Asks it to end.

        Returns:
            Its exit status.
        """
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        self._close()
        return status

    def stub(self) -> stubs.CleaningServiceStub:
        """A client."""
        return stubs.CleaningServiceStub(self._channel())

    def _channel(self) -> grpc.Channel:
        if self._open is None:
            options = [("grpc.max_reconnect_backoff_ms", 500)]
            self._open = grpc.insecure_channel(f"127.0.0.1:{self.port}", options=options)
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


@pytest.fixture(scope="session")
def cleaning(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleaningProcess]:
    """A running cleaning service."""
    process = CleaningProcess(kafka_bootstrap, tmp_path_factory.mktemp("cleaning"))
    process.start()
    yield process
    if process.process is not None and process.process.poll() is None:
        process.kill()
