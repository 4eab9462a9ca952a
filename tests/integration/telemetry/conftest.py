"""The telemetry service as a process of its own on a real Elasticsearch, and what its tests ask of it."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from tidemill.telemetry.v1 import telemetry_service_pb2 as pb
from tidemill.telemetry.v1.telemetry_service_pb2_grpc import TelemetryServiceStub

from infra.stack.layout import python_path
from infra.stack.state import StackState
from infra.stack.testing import running_parts
from tests.integration.telemetry.cuttable_proxy import CuttableProxy
from tests.service_process import ServiceProcess, free_port

_PATIENCE_S = 90.0
T = TypeVar("T")


class TelemetryProcess(ServiceProcess):
    """A process of telemetry; `more` are further settings."""

    def __init__(self, elasticsearch_url: str, folder: Path, more: Mapping[str, str] | None = None) -> None:
        self.metrics_port = free_port()
        settings = {
            "TIDEMILL_METRICS_BIND": f"127.0.0.1:{self.metrics_port}",
            "TIDEMILL_ELASTICSEARCH_URL": elasticsearch_url,
            **(more or {}),
        }
        super().__init__("telemetry", folder, settings, patience_s=_PATIENCE_S)

    @property
    def endpoint(self) -> str:
        """Where exporters send to."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def search(self) -> TelemetryServiceStub:
        """A client of the search."""
        return TelemetryServiceStub(self.channel())

    @property
    def logs(self) -> Any:
        """A client of OTLP's reception of logs."""
        return LogsServiceStub(self.channel())  # type: ignore[no-untyped-call]

    @property
    def traces(self) -> Any:
        """A client of OTLP's reception of traces."""
        return TraceServiceStub(self.channel())  # type: ignore[no-untyped-call]

    def total(self, query: str) -> int:
        """How many log lines match."""
        return self.search.SearchLogs(pb.SearchLogsRequest(query=query, page_size=1), timeout=30).total

    def metric(self, name: str) -> float:
        """The value of a sample that Prometheus would read, 0 where there is none."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.rpartition(" ")[2])
        return 0.0


@dataclass
class Emitter:
    """A process of the mesh that logs and traces; see emitter.py."""

    process: subprocess.Popen[str]
    log: Path

    def finish(self) -> str:
        """Lets it end.

        Returns:
            Its trace's id.
        """
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, self.log.read_text()[-4000:]
        return out.strip()


@pytest.fixture
def emit(tmp_path: Path) -> Iterator[Callable[..., Emitter]]:
    """Starts a process that logs and traces: `emit(service, otlp_endpoint, lines, seconds=0.0)`."""
    started: list[Emitter] = []

    def start(service: str, endpoint: str, lines: int, seconds: float = 0.0) -> Emitter:
        script, log = Path(__file__).with_name("emitter.py"), tmp_path / f"{service}.log"
        with log.open("w") as sink:
            process = subprocess.Popen(
                [sys.executable, str(script), service, endpoint, str(lines), str(seconds)],
                env={**os.environ, "PYTHONPATH": python_path()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
            )
        started.append(Emitter(process, log))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.fixture
def service_name() -> str:
    """A name that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    """An Elasticsearch."""
    with running_parts({"elasticsearch"}, tmp_path_factory.mktemp("es")) as state:
        yield state


@pytest.fixture(scope="package")
def telemetry(stack: StackState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TelemetryProcess]:
    process = TelemetryProcess(stack.elasticsearch_url, tmp_path_factory.mktemp("telemetry"))
    process.start()
    yield process
    process.kill()


@contextmanager
def behind_proxy(stack: StackState, folder: Path, **more: str) -> Iterator[tuple[TelemetryProcess, CuttableProxy]]:
    """A telemetry service whose way to Elasticsearch can be cut."""
    proxy = CuttableProxy(("127.0.0.1", stack.ports["elasticsearch"]))
    process = TelemetryProcess(f"http://{proxy.address}", folder, more)
    process.start()
    try:
        yield process, proxy
    finally:
        process.kill()
        proxy.close()
