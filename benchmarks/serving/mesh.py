"""The serving plane for a benchmark: Kafka, Triton and inference, and gateways that are started and ended at will."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from gateway.keys.key import KeyLimits
from gateway.keys.store import KeyStore
from infra.stack import client
from infra.stack.layout import python_path
from infra.stack.state import StackState
from infra.stack.testing import running_parts
from services.kit.config import home_dir
from services.kit.ids import new_id
from tests.publishing import publish_when_available

_PATIENCE_S = 240.0


@dataclass
class Gateway:
    """One gateway, in one process or several."""

    http: str
    """host:port."""
    grpc: str
    key: str
    """Of a caller with limits, which are never reached."""
    processes: list[subprocess.Popen[bytes]]

    def cpu_s(self) -> float:
        """Processor seconds that it has taken so far."""
        return sum(_cpu_s(psutil.Process(each.pid)) for each in self.processes)

    def resident_mb(self) -> float:
        """Resident memory of all its processes."""
        return sum(psutil.Process(each.pid).memory_info().rss for each in self.processes) / 1e6


@dataclass
class Plane:
    """What runs all the time."""

    stack: StackState
    folder: Path
    otlp: str
    control: int = 0
    inference: subprocess.Popen[bytes] | None = None
    gateways: list[Gateway] = field(default_factory=list)

    @property
    def artifacts(self) -> Path:
        """Where builds are made, to be published from there."""
        return self.folder / "artifacts"

    def start_inference(self) -> None:
        self.control = free_port()
        settings = {
            "TIDEMILL_STATE": str(self.folder),
            "TIDEMILL_ARTIFACTS_URL": f"file://{self.artifacts}",
            "TIDEMILL_TRUSTED_MODEL_KEYS": str(self.artifacts / "keys" / "trusted"),
            "TIDEMILL_TRITON_REPOSITORY": str(self.stack.triton_repository),
            "TIDEMILL_TRITON_STAGING": str(self.stack.triton_repository.with_name("staging-bench")),
        }
        self.inference = self._run("services.inference", self.control, self.folder, settings, python_path())
        _wait(self.inference, f"127.0.0.1:{self.control}")

    def publish(self, model: str, digest: str) -> None:
        """Publishes the build `model` among the artefacts, and waits until Triton serves it."""
        request = pb.PublishModelRequest(
            request_id=new_id(),
            model=f"models/{model}",
            artifact_uri=f"file://{self.artifacts / model}",
            digest=digest,
            run="runs/bench",
            dataset_version="datasets/bench/versions/1",
        )
        with grpc.insecure_channel(f"127.0.0.1:{self.control}") as channel:
            publish_when_available(InferenceServiceStub(channel), request, _PATIENCE_S)

    @contextmanager
    def gateway(
        self, name: str, settings: Mapping[str, str] | None = None, code: Path | None = None, processes: int = 1
    ) -> Iterator[Gateway]:
        """Runs a gateway for the length of the block.

        Args:
            name: of its folder.
            settings: further `TIDEMILL_*` variables.
            code: another checkout, whose gateway is started; this one when None.
            processes: how many share its ports.
        """
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        database = f"sqlite:///{folder / 'gateway.sqlite'}"
        http, port = free_port(), free_port()
        given = {
            "TIDEMILL_STATE": str(folder),
            "TIDEMILL_HTTP_BIND": f"127.0.0.1:{http}",
            "TIDEMILL_INFERENCE_ADDRESS": f"127.0.0.1:{self.control}",
            "TIDEMILL_DATABASE_URL": database,
            "TIDEMILL_GATEWAY_PROCESSES": str(processes),
            "TIDEMILL_GATEWAY_SOCKETS": str(folder),
            "TIDEMILL_OTLP_ENDPOINT": self.otlp,
            **(settings or {}),
        }
        path = python_path() if code is None else f"{code}{os.pathsep}{code / 'protos' / 'gen'}"
        running: list[subprocess.Popen[bytes]] = []
        try:
            for number in range(1, processes + 1):
                own = {**given, "TIDEMILL_GATEWAY_PROCESS": str(number)}
                running.append(self._run("gateway", port, folder, own, path))
                _wait(running[-1], f"127.0.0.1:{port}" if processes == 1 else f"unix:{folder / f'gateway-{number}'}")
            store = KeyStore.open(database)
            _, key = store.create("bench", limits=KeyLimits(requests_per_s=1e6, concurrent=10_000))
            store.close()
            yield Gateway(f"127.0.0.1:{http}", f"127.0.0.1:{port}", key, running)
        finally:
            for process in running:
                end_process(process)

    def triton_cpu_s(self) -> float:
        """Processor seconds of Triton and its models so far."""
        pid = client.status(self.stack.state, home_dir()).children["triton"].pid
        assert pid is not None
        return _cpu_s(psutil.Process(pid))

    def _run(
        self, module: str, port: int, folder: Path, settings: Mapping[str, str], path: str
    ) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "TIDEMILL_BIND": f"127.0.0.1:{port}",
            "TIDEMILL_KAFKA_BOOTSTRAP": self.stack.kafka_bootstrap,
            "TIDEMILL_DATABASE_URL": f"sqlite:///{folder}/{module}.sqlite",
            "TIDEMILL_TRITON_GRPC": self.stack.triton_grpc,
            **settings,
        }
        with (folder / f"{module}.log").open("ab") as log:
            # In the folder, not in this checkout, which `-m` would find first.
            return subprocess.Popen(
                [sys.executable, "-P", "-m", module], env=environment, stdout=log, stderr=log, cwd=folder
            )


@contextmanager
def running_plane(folder: Path) -> Iterator[Plane]:
    """Kafka, Triton, inference and a receiver of telemetry, for the length of the block."""
    with running_parts({"kafka", "triton"}, folder / "stack") as stack, _receiver() as otlp:
        plane = Plane(stack, folder, otlp)
        plane.artifacts.mkdir(exist_ok=True)
        plane.start_inference()
        try:
            yield plane
        finally:
            if plane.inference is not None:
                end_process(plane.inference)


def free_port() -> int:
    """A port that no one uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _receiver() -> Iterator[str]:
    """A receiver of telemetry that keeps nothing, in this process, which measures and so does nothing else."""

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
            return trace_service_pb2.ExportTraceServiceResponse()

    class Logs(logs_service_pb2_grpc.LogsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
            return logs_service_pb2.ExportLogsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    add_traces: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add_logs: Any = logs_service_pb2_grpc.add_LogsServiceServicer_to_server
    add_traces(Traces(), server)
    add_logs(Logs(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None)


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    with grpc.insecure_channel(address, [("grpc.max_reconnect_backoff_ms", 500)]) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        while True:
            with contextlib.suppress(grpc.RpcError):
                if health.Check(health_pb2.HealthCheckRequest(), timeout=2).status == _SERVING:
                    return
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{address} does not answer; see the logs of the benchmark.")
            time.sleep(0.1)


_SERVING = health_pb2.HealthCheckResponse.SERVING


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, by force if it does not end by itself."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _cpu_s(process: psutil.Process) -> float:
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system
    return total
