"""The real Kafka, Elasticsearch and Triton: they work, they come back when killed, and they stop on request."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from infra.stack import client
from infra.stack.errors import StackError
from infra.stack.layout import python_path
from infra.stack.process import is_alive, tagged
from infra.stack.state import ChildPhase, StackPhase, StackState, read_state
from infra.stack.testing import running_parts
from infra.stack.topology import PARTS
from services.kit.config import home_dir
from tests.processes import unless_ended
from tests.waiting import wait_for

pytestmark = pytest.mark.real

_PATIENCE_S = 120.0

_CONFIG = """
name: "double"
backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
"""
_MODEL = """
import triton_python_backend_utils as triton
import openvino_genai  # an installed package
import services.kit.errors  # Tidemill's own code


class TritonPythonModel:
    def execute(self, requests):
        return [
            triton.InferenceResponse([triton.Tensor("y", triton.get_input_tensor_by_name(r, "x").as_numpy() * 2)])
            for r in requests
        ]
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    # These tests kill parts: they need their own.
    with running_parts(PARTS, tmp_path_factory.mktemp("stack"), own=True) as running:
        yield running
        outside = running.layout.state.elasticsearch.resolve()
    assert outside.is_relative_to(running.state) or not outside.exists()
    assert read_state(running.layout).phase is StackPhase.STOPPED
    assert tagged(running.state) == []


def send_and_receive(bootstrap: str) -> bytes:
    from kafka import KafkaConsumer, KafkaProducer
    from kafka.admin import KafkaAdminClient, NewTopic

    topic = f"stack-{uuid.uuid4().hex[:8]}"
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True)
    producer.send(topic, b"a record").get(timeout=30)
    producer.close()
    consumer = KafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=30_000, group_id=topic
    )
    try:
        value: bytes = next(consumer).value
        return value
    finally:
        consumer.close()


def index_and_find(url: str) -> Any:
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
        index = f"stack-{uuid.uuid4().hex[:8]}"
        http.put(f"/{index}/_doc/1?refresh=true", json={"message": "high tide at noon"}).raise_for_status()
        found = http.post(f"/{index}/_search", json={"query": {"match": {"message": "tide"}}}).raise_for_status()
        return found.json()["hits"]["total"]["value"]


def double(stack: StackState) -> list[float]:
    import tritonclient.grpc as triton

    folder = stack.triton_repository / "double"
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(_CONFIG)
    (folder / "1" / "model.py").write_text(_MODEL)
    with triton.InferenceServerClient(stack.triton_grpc) as server:
        server.load_model("double", client_timeout=60)
        given = triton.InferInput("x", [3], "FP32")
        given.set_data_from_numpy(np.array([1, 2, 3], dtype=np.float32))
        result: list[float] = server.infer("double", [given], client_timeout=30).as_numpy("y").tolist()
        return result


def test_all_parts_are_healthy_and_write_logs(stack: StackState) -> None:
    now = client.status(stack.state, stack.home)
    assert {name: (each.healthy, each.health) for name, each in now.children.items()} == dict.fromkeys(
        PARTS, (True, "")
    )
    for each in now.children.values():
        assert Path(each.log).stat().st_size > 0


def test_kafka_carries_records(stack: StackState) -> None:
    assert send_and_receive(stack.kafka_bootstrap) == b"a record"


def test_elasticsearch_finds_what_it_was_given(stack: StackState) -> None:
    assert index_and_find(stack.elasticsearch_url) == 1


def test_triton_runs_a_python_model_and_leaves_the_repository_as_it_was(stack: StackState) -> None:
    assert double(stack) == [2.0, 4.0, 6.0]
    assert sorted(path.name for path in stack.triton_repository.rglob("*")) == [
        "1",
        "config.pbtxt",
        "double",
        "model.py",
    ]


def test_nothing_listens_beyond_loopback(stack: StackState) -> None:
    listening = []
    for process in tagged(stack.state):
        with unless_ended(process.pid):
            found = psutil.Process(process.pid).net_connections("tcp")
            listening += [each for each in found if each.status == psutil.CONN_LISTEN]
    assert len(listening) >= len(stack.ports)
    assert {each.laddr.ip.removeprefix("::ffff:") for each in listening} <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("name", PARTS)
def test_a_killed_part_comes_back_and_works(stack: StackState, name: str) -> None:
    before = read_state(stack.layout).children[name]
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    wait_for(
        lambda: read_state(stack.layout).children[name],
        lambda after: after.phase is ChildPhase.READY and after.restarts == before.restarts + 1,
        f"a restart of {name}",
        _PATIENCE_S,
    )
    if name == "kafka":
        assert send_and_receive(stack.kafka_bootstrap) == b"a record"
    elif name == "elasticsearch":
        assert index_and_find(stack.elasticsearch_url) == 1
    else:
        assert double(stack) == [2.0, 4.0, 6.0]


def test_up_on_a_running_stack_returns_it_and_refuses_another_selection(stack: StackState) -> None:
    assert client.up(stack.state, stack.home, PARTS).pid == stack.pid
    with pytest.raises(StackError, match=r"without ingest.*tidemill down"):
        client.up(stack.state, stack.home, [*PARTS, "ingest"])


def test_an_interrupted_up_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    # Kafka needs seconds to start: time enough to be interrupted.
    code = (
        "import sys; from pathlib import Path; from infra.stack import client\n"
        "state, home = map(Path, sys.argv[1:])\n"
        "client.up(state, home, ['kafka', 'triton'], lambda name, child: print(name, flush=True))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(home_dir())]
    caller = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": python_path()},
        start_new_session=True,
        # A shell that runs the tests in the background has it ignored, and programs inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert caller.stdout is not None
    caller.stdout.readline()
    os.killpg(caller.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    caller.communicate()
    assert caller.returncode != 0
    left = client.status(tmp_path, home_dir())
    assert left.phase is StackPhase.STOPPED
    assert tagged(tmp_path) == []
    again = client.up(tmp_path, home_dir(), ["triton"])
    try:
        assert is_alive(again.pid, again.pid_ticks)
    finally:
        assert client.down(tmp_path, home_dir()).phase is StackPhase.STOPPED
    assert client.down(tmp_path, home_dir()).phase is StackPhase.STOPPED
    assert tagged(tmp_path) == []
