"""The ingest service as a process of its own on a real Kafka, and what its tests ask of it."""

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
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kafka import KafkaConsumer, TopicPartition
from tidemill.ingest.v1 import ingest_service_pb2_grpc as stubs

from infra.stack.testing import running_parts
from services.kit.bus.kafka import ensure_topics
from services.kit.bus.topics import Topic

M = TypeVar("M", bound=Message)

_ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka with all topics."""
    with running_parts({"kafka"}, tmp_path_factory.mktemp("stack")) as stack:
        ensure_topics(stack.kafka_bootstrap)
        yield stack.kafka_bootstrap


@dataclass
class IngestProcess:
    """`python -m services.ingest` with a state that outlives a kill."""

    bootstrap: str
    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    _open: grpc.Channel | None = None

    @property
    def log(self) -> Path:
        """Its log, over all restarts."""
        return self.folder / "ingest.log"

    def start(self) -> None:
        """Starts it and waits until it serves."""
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        environment = {
            **os.environ,
            "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'protos' / 'gen'}",
            "TIDEMILL_BIND": f"127.0.0.1:{self.port}",
            "TIDEMILL_KAFKA_BOOTSTRAP": self.bootstrap,
            "TIDEMILL_DATABASE_URL": f"sqlite:///{self.folder}/ingest.sqlite",
        }
        environment.pop("TIDEMILL_OTLP_ENDPOINT", None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.ingest"], env=environment, stdout=log, stderr=log
            )
        health: Any = health_pb2_grpc.HealthStub(self._channel())
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=2)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                time.sleep(0.1)

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

    def stub(self) -> stubs.IngestServiceStub:
        """A client."""
        return stubs.IngestServiceStub(self._channel())

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
def ingest(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IngestProcess]:
    """A running ingest service."""
    process = IngestProcess(kafka_bootstrap, tmp_path_factory.mktemp("ingest"))
    process.start()
    yield process
    if process.process is not None and process.process.poll() is None:
        process.kill()


def read_all(bootstrap: str, topic: Topic) -> list[tuple[dict[str, bytes], bytes]]:
    """Headers and values of all messages that a topic holds now."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, isolation_level="read_committed")
    try:
        partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning(*partitions)
        found: list[tuple[dict[str, bytes], bytes]] = []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(timeout_ms=500).values():
                found += [(dict(record.headers), record.value) for record in records]
        return found
    finally:
        consumer.close()


def messages_of(bootstrap: str, topic: Topic, kind: type[M], import_name: str) -> list[tuple[dict[str, bytes], M]]:
    """Headers and messages of a topic that one import brought; of pushed records where the name is empty."""
    found = [(headers, kind.FromString(value)) for headers, value in read_all(bootstrap, topic)]
    return [(headers, message) for headers, message in found if message.import_name == import_name]  # type: ignore[attr-defined]  # of both events
