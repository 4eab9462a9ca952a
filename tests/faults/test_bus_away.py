"""A broker that hangs or was killed: callers get BUS_AWAY before their own deadline, and a stop is not delayed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tidemill.ingest.v1 import ingest_service_pb2 as pb
from tidemill.ingest.v1 import ingest_service_pb2_grpc as stubs
from tidemill.ingest.v1.record_pb2 import Record

from infra.stack import client
from infra.stack.state import StackState
from infra.stack.testing import REUSE, running_parts
from services.kit.bus.kafka import ensure_topics
from services.kit.config import home_dir
from tests.freezing import frozen
from tests.service_process import ServiceProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    with pytest.MonkeyPatch.context() as patch:
        # A broker of its own: it is killed.
        patch.delenv(REUSE, raising=False)
        with running_parts({"kafka"}, tmp_path_factory.mktemp("stack")) as state:
            ensure_topics(state.kafka_bootstrap)
            yield state


@pytest.fixture
def ingest(stack: StackState, tmp_path: Path) -> Iterator[ServiceProcess]:
    process = ServiceProcess(
        "ingest",
        tmp_path,
        {
            "TIDEMILL_KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
            "TIDEMILL_DATABASE_URL": f"sqlite:///{tmp_path}/ingest.sqlite",
        },
    )
    process.start()
    yield process
    process.kill()


def push(ingest: ServiceProcess, text: str, timeout_s: float) -> str:
    request = pb.IngestRecordsRequest(records=[Record(source="bus", text=text)], request_id=text)
    return str(stubs.IngestServiceStub(ingest.channel()).IngestRecords(request, timeout=timeout_s).record_ids[0])


def reason_of(error: Any) -> str:
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in rpc_status.from_call(error).details)
    return str(info.reason)


def test_a_caller_gets_that_the_bus_is_unavailable_before_its_deadline(
    stack: StackState, ingest: ServiceProcess
) -> None:
    push(ingest, "before", 60)
    with frozen(stack.children["kafka"].pid):
        for number in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                push(ingest, f"during {number}", 4)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert reason_of(caught.value) == "BUS_AWAY"
            assert "Kafka did not take" in str(caught.value.details())
            assert "`tidemill status`" in str(caught.value.details())
    push(ingest, "after", 60)


def test_a_stop_is_not_held_up_by_a_broker_that_hangs(stack: StackState, ingest: ServiceProcess) -> None:
    push(ingest, "before", 60)
    answers: list[grpc.RpcError] = []

    def wait() -> None:
        try:
            push(ingest, "in flight", 120)
        except grpc.RpcError as error:
            answers.append(error)

    with frozen(stack.children["kafka"].pid):
        caller = threading.Thread(target=wait)
        caller.start()
        # That the caller's messages wait in the producer cannot be seen from outside. A caller that comes too late
        # finds that the service has ended.
        caller.join(2)
        assert ingest.process is not None
        ingest.process.send_signal(signal.SIGTERM)
        # The supervisor would kill it after 30 s. It should take at most 10 s; without a bound it took 26 s.
        assert ingest.process.wait(12) == 0
        caller.join(60)
        assert [reason_of(error) for error in answers] == ["BUS_AWAY"], "answered in order, not cut off"
    wait_until(lambda: not ingest.running, "the end of the service")


def test_a_caller_gets_the_same_answer_from_a_broker_that_was_killed(stack: StackState, ingest: ServiceProcess) -> None:
    push(ingest, "before", 60)
    errors: list[grpc.RpcError] = []
    number = 0
    # The supervisor starts it again, so that it is killed until a caller has met its absence.
    while not errors:
        number += 1
        broker = client.status(stack.state, home_dir()).children["kafka"].pid
        if broker is not None:
            with suppress(ProcessLookupError):
                os.kill(broker, signal.SIGKILL)
        try:
            push(ingest, f"killed {number}", 4)
        except grpc.RpcError as error:
            errors.append(error)
    assert [(error.code(), reason_of(error)) for error in errors] == [(grpc.StatusCode.UNAVAILABLE, "BUS_AWAY")]
    wait_until(lambda: client.status(stack.state, home_dir()).children["kafka"].healthy, "the broker", 90)
    push(ingest, "after", 60)
