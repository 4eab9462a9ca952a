"""The ingest service as a process of its own on a real Kafka, and what its tests ask of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from tidemill.ingest.v1 import ingest_service_pb2 as pb
from tidemill.ingest.v1 import ingest_service_pb2_grpc as stubs
from tidemill.ingest.v1.record_pb2 import Record

from infra.stack.state import StackState
from infra.stack.testing import running_parts
from services.kit.bus.kafka import ensure_topics
from services.kit.bus.topics import Topic
from tests.freezing import frozen
from tests.service_process import ServiceProcess
from tests.topics import read_all
from tests.waiting import wait_until

M = TypeVar("M", bound=Message)


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    """A Kafka with all topics."""
    with running_parts({"kafka"}, tmp_path_factory.mktemp("stack")) as state:
        ensure_topics(state.kafka_bootstrap)
        yield state


@pytest.fixture(scope="package")
def kafka_bootstrap(stack: StackState) -> str:
    return stack.kafka_bootstrap


class IngestProcess(ServiceProcess):
    """A process of ingest."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        settings = {
            "TIDEMILL_KAFKA_BOOTSTRAP": bootstrap,
            "TIDEMILL_DATABASE_URL": f"sqlite:///{folder}/ingest.sqlite",
            # Of all tests of the run.
            "TIDEMILL_SOURCE_ROOTS": str(folder.parent.parent),
            "TIDEMILL_SOURCE_HOSTS": "127.0.0.1:*",
        }
        super().__init__("ingest", folder, settings)

    def stub(self) -> stubs.IngestServiceStub:
        return stubs.IngestServiceStub(self.channel())


@pytest.fixture(scope="package")
def ingest(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IngestProcess]:
    process = IngestProcess(kafka_bootstrap, tmp_path_factory.mktemp("ingest"))
    process.start()
    yield process
    process.kill()


@pytest.fixture
def frozen_kafka(stack: StackState, ingest: IngestProcess) -> Iterator[None]:
    """Kafka takes connections and answers nothing until the test ends; the next test finds both answering again."""
    with frozen(stack.children["kafka"].pid):
        yield
    wait_until(lambda: _accepts(ingest), "ingest that accepts records again")


def _accepts(ingest: IngestProcess) -> bool:
    probe = pb.IngestRecordsRequest(records=[Record(source="after-the-frost", text="text")])
    try:
        ingest.stub().IngestRecords(probe, timeout=20)
    except grpc.RpcError:
        return False
    return True


def messages_of(bootstrap: str, topic: Topic, kind: type[M], import_name: str) -> list[tuple[dict[str, bytes], M]]:
    """Headers and messages of a topic that one import brought; of pushed records where the name is empty."""
    name = kind.DESCRIPTOR.full_name.encode()
    events = [(headers, value) for headers, value in read_all(bootstrap, topic) if headers.get("ce_type") == name]
    found = [(headers, kind.FromString(value)) for headers, value in events]
    return [(headers, message) for headers, message in found if message.import_name == import_name]  # type: ignore[attr-defined]  # of both events
