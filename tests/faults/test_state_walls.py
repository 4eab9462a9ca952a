"""What another user of the machine can reach of a running mesh: its sockets, ports and files."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from tidemill.ingest.v1 import ingest_service_pb2 as pb
from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from infra.stack import client
from infra.stack.process import tagged
from infra.stack.state import StackState
from infra.stack.testing import running_parts
from tests.faults.strangers import connects, open_folder, read_by_others, reads
from tests.processes import unless_ended
from tests.trees import entries_below

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def stack() -> Iterator[StackState]:
    """A service and its broker, in a state folder that an earlier release left readable for everyone."""
    with open_folder() as folder:
        state = folder / "state"
        (state / "logs").mkdir(parents=True)
        (state / "logs" / "old.log").write_text("raw text")
        for path in (state, state / "logs", state / "logs" / "old.log"):
            path.chmod(0o755)
        with running_parts({"kafka", "ingest", "gateway"}, state, own=True) as running:
            yield running


def test_a_service_answers_its_own_user_on_a_socket(stack: StackState) -> None:
    assert client.status(stack.state, stack.home).children["ingest"].healthy
    with grpc.insecure_channel(stack.address("ingest")) as channel:
        assert not IngestServiceStub(channel).ListImports(pb.ListImportsRequest(), timeout=10).imports


def test_another_user_cannot_connect_to_it(stack: StackState) -> None:
    assert stack.sockets["ingest"].is_socket()
    assert not connects(stack.sockets["ingest"])


def test_a_service_has_no_port_but_that_of_its_counters(stack: StackState) -> None:
    pid = stack.children["ingest"].pid
    assert pid is not None
    listening = [each for each in psutil.Process(pid).net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert [each.laddr.port for each in listening] == [stack.ports["ingest_metrics"]]


@pytest.mark.parametrize("use", ["ingest_metrics", "gateway_http"])
def test_the_counters_are_read_with_the_token_of_the_mesh_only(stack: StackState, use: str) -> None:
    url = f"http://127.0.0.1:{stack.ports[use]}/metrics"
    token = stack.layout.state.metrics_token.read_text()
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}, {"Authorization": "Basic x"}):
        answer = httpx.get(url, headers=header, timeout=10, trust_env=False)
        assert answer.status_code == 401
        assert "request_latency" not in answer.text
    answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=10, trust_env=False)
    assert answer.status_code == 200
    assert "request_latency" in answer.text
    assert not reads(stack.layout.state.metrics_token)


def test_another_user_reads_no_file_of_the_state(stack: StackState) -> None:
    files = [path for path, entry in entries_below(stack.state) if stat.S_ISREG(entry.st_mode)]
    kinds = {path.relative_to(stack.state).parts[0] for path in files}
    assert {"db", "kafka", "logs", "stack.json"} <= kinds
    assert read_by_others(files) == []


def test_what_the_mesh_wrote_is_closed_by_its_own_mode_as_well(stack: StackState) -> None:
    """If an operator opens the folder later, or copies it, the files are still closed."""
    found = [(path, entry.st_mode) for path, entry in entries_below(stack.state) if "old.log" not in path.name]
    assert [path for path, mode in found if stat.S_ISREG(mode) and stat.S_IMODE(mode) & 0o077] == []


def test_nothing_in_shared_memory_is_open_to_others(stack: StackState) -> None:
    mapped: set[Path] = set()
    for process in tagged(stack.state):
        with unless_ended(process.pid):
            regions = psutil.Process(process.pid).memory_maps()
            mapped |= {Path(region.path) for region in regions if region.path.startswith("/dev/shm/")}
    opened = []
    for path in mapped:
        with suppress(FileNotFoundError):  # deleted while it is mapped
            opened += [path] if path.stat().st_mode & 0o077 else []
    assert opened == []
