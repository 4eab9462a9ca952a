"""A broker that hangs or was killed: callers get BUS_AWAY before their own deadline, and a stop is not delayed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tidemill.cleaning.v1 import cleaning_service_pb2 as cleaning_pb
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceStub
from tidemill.ingest.v1 import ingest_service_pb2 as pb
from tidemill.ingest.v1 import ingest_service_pb2_grpc as stubs
from tidemill.ingest.v1.record_pb2 import Record
from tidemill.pipeline.v1 import pipeline_service_pb2 as pipeline_pb
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub

from infra.stack import client
from infra.stack.state import StackState
from infra.stack.testing import running_parts
from services.kit.bus.kafka import ensure_topics
from services.kit.config import home_dir
from tests.faults.gateway_process import GatewayProcess, running_gateway
from tests.freezing import frozen
from tests.integration.gateway.fake_peers import FakePeers
from tests.service_process import ServiceProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    # A broker of its own: it is killed.
    with running_parts({"kafka"}, tmp_path_factory.mktemp("stack"), own=True) as state:
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


Leave = Callable[[ServiceProcess], None]
"""Leaves a service with something that Kafka is to get; the broker answers nothing by then."""


def nothing(_: ServiceProcess) -> None:
    """Its producer and what it watches are connected."""


def records(ingest: ServiceProcess) -> None:
    """A caller waits until they are stored."""
    request = pb.IngestRecordsRequest(records=[Record(source="bus", text="at the end")], request_id="at the end")
    stubs.IngestServiceStub(ingest.channel()).IngestRecords.future(request, timeout=120)


def verdicts(cleaning: ServiceProcess) -> None:
    """The events of records that it has judged by a new data set, and those of a version to be built of them."""
    stub = CleaningServiceStub(cleaning.channel())
    put = cleaning_pb.PutDatasetRequest(name="datasets/bus")
    put.spec.sources.append("bus")
    stub.PutDataset(put, timeout=30)
    order = cleaning_pb.BuildDatasetVersionRequest(request_id="bus", dataset="datasets/bus")
    stub.BuildDatasetVersion(order, timeout=30)


def feedback(pipeline: ServiceProcess) -> None:
    """The event of a judgement."""
    judgement = pipeline_pb.RecordFeedbackRequest(request_id="bus", answer="answers/bus", rating=1)
    PipelineServiceStub(pipeline.channel()).RecordFeedback(judgement, timeout=30)


PENDING: Mapping[str, Leave] = {
    "ingest": records,
    "cleaning": verdicts,
    "pipeline": feedback,
    "training": nothing,
    "inference": nothing,
}


def test_every_service_that_talks_to_kafka_is_in_the_table() -> None:
    roots = (Path(__file__).parents[2] / "services").glob("*/__main__.py")
    assert {path.parent.name for path in roots if "KafkaEvent" in path.read_text()} == set(PENDING)


@pytest.fixture
def everyone(stack: StackState, tmp_path: Path) -> Iterator[Mapping[str, ServiceProcess]]:
    """All of them, side by side."""
    services = {name: _service(name, stack, tmp_path / name) for name in PENDING}
    try:
        with ThreadPoolExecutor(len(services)) as pool:
            list(pool.map(ServiceProcess.start, services.values()))
        yield services
    finally:
        for service in services.values():
            service.kill()


def _service(name: str, stack: StackState, folder: Path) -> ServiceProcess:
    folder.mkdir()
    settings = {
        "KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
        "DATABASE_URL": f"sqlite:///{folder}/{name}.sqlite",
        "ARTIFACTS_URL": f"file://{folder}/artifacts",
        "MLFLOW_URI": f"sqlite:///{folder}/mlflow.db",
        "MODEL_SIGNING_KEY": f"{folder}/keys/signing.pem",
        "TRUSTED_MODEL_KEYS": f"{folder}/keys/trusted",
        "TRITON_GRPC": "127.0.0.1:1",
        "TRITON_REPOSITORY": f"{folder}/repository",
    }
    # A process that is held up says where.
    traced = {"PYTHONFAULTHANDLER": "1"}
    return ServiceProcess(name, folder, {f"TIDEMILL_{key}": value for key, value in settings.items()} | traced)


@pytest.fixture
def gateway(stack: StackState, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway in front of models that answer."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    peers = FakePeers()
    asyncio.run_coroutine_threadsafe(peers.start(), loop).result(30)
    state = tmp_path / "gateway"
    state.mkdir()
    settings = {"INFERENCE_ADDRESS": peers.address, "TRITON_GRPC": peers.address}
    try:
        with running_gateway(state, {**settings, "KAFKA_BOOTSTRAP": stack.kafka_bootstrap}) as process:
            yield process
    finally:
        asyncio.run_coroutine_threadsafe(peers.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def predict(gateway: GatewayProcess) -> int:
    """The status of a prediction, whose event Kafka is to get."""
    body = {"model": "reviews", "texts": ["a"]}
    headers = {"x-api-key": gateway.key}
    return httpx.post(f"http://127.0.0.1:{gateway.http}/v1/predict", json=body, headers=headers).status_code


def test_no_service_is_held_up_by_a_broker_that_hangs(
    stack: StackState, everyone: Mapping[str, ServiceProcess], gateway: GatewayProcess
) -> None:
    push(everyone["ingest"], "before the end", 60)
    wait_until(lambda: predict(gateway) == 200, "a prediction")
    with frozen(stack.children["kafka"].pid):
        for name, leave in PENDING.items():
            leave(everyone[name])
        assert predict(gateway) == 200
        processes = {"gateway": gateway.process, **{name: each.process for name, each in everyone.items()}}
        for process in processes.values():
            assert process is not None
            process.send_signal(signal.SIGTERM)
        # As above, on a machine where all of them end at once.
        end = time.monotonic() + 20
        held_up = {
            name: status
            for name, process in processes.items()
            if process is not None and (status := _status(process, end - time.monotonic())) != 0
        }
    assert held_up == {}


def _status(process: subprocess.Popen[bytes], patience_s: float) -> int | None:
    """The exit status; None if it still runs then."""
    try:
        return process.wait(max(0.0, patience_s))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        return None


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
