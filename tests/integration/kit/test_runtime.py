"""The life of a service process: what it says when it cannot start, and the order in which it stops."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub

from infra.stack.layout import python_path
from services.kit.config import ServiceSettings, load_settings
from tests.processes import serves
from tests.service_process import free_port
from tests.waiting import wait_until

_NAME = "pipelines/a/cycles/b"


class Probe:
    """A process of probe_service.py."""

    def __init__(self, folder: Path, mode: str, **environment: str) -> None:
        self.port = free_port()
        self.said, self.log = folder / "said", folder / "log"
        with self.said.open("wb") as said, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("probe_service.py")), mode],
                env={
                    **os.environ,
                    "PYTHONPATH": python_path(),
                    "TIDEMILL_BIND": f"127.0.0.1:{self.port}",
                    "TIDEMILL_STATE": str(folder),
                    **environment,
                },
                stdout=said,
                stderr=log,
            )

    def words(self) -> list[str]:
        """What it said so far."""
        return self.said.read_text().splitlines()

    def until(self, reached: Callable[[], bool]) -> None:
        wait_until(lambda: reached() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()

    def serves(self) -> bool:
        """Whether it is healthy."""
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            return serves(channel, _SERVICE)

    def end(self, *signals: signal.Signals, patience_s: float = 30) -> int:
        """Sends the signals; returns the exit status."""
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.1)
        return self.process.wait(patience_s)


_SERVICE = "tidemill.pipeline.v1.PipelineService"


@pytest.fixture
def probe(tmp_path: Path) -> Iterator[Callable[..., Probe]]:
    """Starts a process of probe_service.py: `probe(mode, **environment)`."""
    started: list[Probe] = []

    def start(mode: str, **environment: str) -> Probe:
        started.append(Probe(tmp_path, mode, **environment))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def test_under_load_it_stops_in_order_and_a_second_signal_changes_nothing(probe: Callable[..., Probe]) -> None:
    process = probe("serve")
    process.until(process.serves)
    with ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{process.port}"))
        threads = stack.enter_context(ThreadPoolExecutor())
        stub = PipelineServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        of_health: Any = health.Watch(health_pb2.HealthCheckRequest(service=_SERVICE))
        assert next(of_health).status == health_pb2.HealthCheckResponse.SERVING
        watch: Any = stub.WatchCycle(pb.WatchCycleRequest(name=_NAME))
        next(watch)
        slow = threads.submit(stub.CancelCycle, pb.CancelCycleRequest(name=_NAME), timeout=30)
        process.until(lambda: "call began" in process.words())
        process.process.send_signal(signal.SIGTERM)
        assert next(of_health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        # Its last open stream.
        of_health.cancel()
        # A stream that lasts as long as what it watches does not hold up the others.
        with pytest.raises(grpc.RpcError) as caught:
            for _ in watch:
                pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "Retry later" in str(caught.value.details())
        assert "call ended" not in process.words()
        assert process.end(signal.SIGTERM, signal.SIGINT) == 0
        # A call that had begun was let end.
        assert slow.result(timeout=10) == pb.CancelCycleResponse()
    words = process.words()
    assert words.count("batch began") == words.count("batch committed")
    order = ["consumer stopped", "call ended", "task ended", "closer one", "closer two"]
    assert sorted(order, key=words.index) == order
    last = process.log.read_text().splitlines()
    assert '"probe ended"' in last[-1]
    assert any("cannot close" in line for line in last)


def test_a_signal_while_it_waits_for_a_part_ends_it_at_once(probe: Callable[..., Probe]) -> None:
    process = probe("waits")
    process.until(lambda: process.words() == ["builds"])
    # Its part would keep it for an hour.
    assert process.end(signal.SIGTERM) == 0
    assert "was stopped before it served" in process.log.read_text()


def test_a_task_that_fails_ends_the_process_in_order_and_with_1(probe: Callable[..., Probe]) -> None:
    process = probe("fails")
    assert process.end() == 1
    assert process.words()[-3:] == ["task ended", "closer one", "closer two"]
    assert "a defect" in process.log.read_text()


def test_a_defect_at_the_start_is_a_line_of_the_log_like_all_others(probe: Callable[..., Probe]) -> None:
    process = probe("breaks")
    assert process.end() == 1
    (line,) = process.log.read_text().splitlines()
    entry = json.loads(line)
    assert (entry["log.level"], entry["service.name"]) == ("error", "probe")
    assert (entry["error.type"], entry["error.message"]) == ("RuntimeError", "a defect")
    assert "Traceback" in entry["error.stack_trace"]


@pytest.mark.parametrize("variable", ["TIDEMILL_BIND", "TIDEMILL_METRICS_BIND"])
def test_a_port_in_use_is_reported_in_a_sentence_that_names_the_variable(
    probe: Callable[..., Probe], variable: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = probe("serve", **{variable: address})
        assert process.end() == 1
    last = process.log.read_text().splitlines()[-1]
    assert f"Cannot listen on {address}" in last
    assert f"set {variable} to another port" in last
    assert "stack_trace" not in last
    # What had been built is closed all the same.
    assert process.words() == ["closer one", "closer two"]


def test_a_receiver_of_telemetry_that_never_answers_holds_up_neither_calls_nor_the_stop(
    probe: Callable[..., Probe],
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent:
        process = probe("serve", TIDEMILL_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
        process.until(process.serves)
        with grpc.insecure_channel(f"127.0.0.1:{process.port}") as channel:
            stub = PipelineServiceStub(channel)
            for _ in range(500):
                stub.GetCycle(pb.GetCycleRequest(name=_NAME), timeout=5)
        # The exporters would wait for a minute each.
        assert process.end(signal.SIGTERM, patience_s=25) == 0


def test_a_setting_that_is_wrong_ends_the_process_with_a_sentence_of_its_own(probe: Callable[..., Probe]) -> None:
    process = probe("serve", TIDEMILL_BIND="127.0.0.1:99999")
    assert process.end() == 1
    (line,) = process.log.read_text().splitlines()
    assert line == "TIDEMILL_BIND: must be host:port with a port up to 65535, not '127.0.0.1:99999'"


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("TIDEMILL_BIND", "127.0.0.1:99999", "must be host:port"),
        ("TIDEMILL_METRICS_BIND", "9100", "must be host:port"),
        ("TIDEMILL_METRICS_BIND", "unix:/run/metrics", "must be host:port"),
        ("TIDEMILL_BIND", "unix:sockets/ingest", "must be unix: and the absolute path"),
        ("TIDEMILL_BIND", f"unix:/{'deep' * 30}", "must be a path of at most 107 bytes"),
        ("TIDEMILL_OTLP_ENDPOINT", "unix:telemetry", "must be unix: and the absolute path"),
        ("TIDEMILL_LOG_LEVEL", "chatty", "must be one of"),
        ("TIDEMILL_OTLP_ENDPOINT", "127.0.0.1:4317", "must be a URL"),
    ],
)
def test_a_setting_that_is_wrong_is_reported_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str, why: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        load_settings(ServiceSettings)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{variable}: {why}")
    assert value in line


def test_by_itself_a_service_keeps_its_files_in_the_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not below /tmp, where another user may be the first to create a folder, and reads what is in it."""
    monkeypatch.delenv("TIDEMILL_ARTIFACTS_URL", raising=False)
    monkeypatch.setenv("TIDEMILL_STATE", str(tmp_path))
    assert load_settings(ServiceSettings).artifacts_url == (tmp_path / "artifacts").as_uri()
