"""The inference service as a process of its own, on a real Triton and Kafka, with a receiver of its spans."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import inference_service_pb2_grpc as stubs

from infra.stack.state import StackState
from infra.stack.testing import running_parts
from services.kit.ids import new_id
from tests.integration.inference.builds import finish_generator, make_classifier, make_generator
from tests.waiting import wait_until

_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class BuildFolder:
    """A build and its digest."""

    path: Path
    digest: str


@dataclass(frozen=True)
class Builds:
    """What the tests publish, below `root`. `positive` calls good words positive, `turned` the other way round."""

    root: Path
    positive: BuildFolder
    turned: BuildFolder
    broken: BuildFolder
    writer: BuildFolder
    second_writer: BuildFolder


class SpanReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it receives: (service, span)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[tuple[str, Any]] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._lock:
            for resource in request.resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self._spans += [(names["service.name"], span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, trace_id: bytes) -> list[tuple[str, Any]]:
        """The spans of a trace."""
        with self._lock:
            return [(service, span) for service, span in self._spans if span.trace_id == trace_id]


@dataclass
class InferenceProcess:
    """`python -m services.inference` with a state that outlives a kill."""

    stack: StackState
    folder: Path
    otlp: str
    artifacts: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    channel: grpc.Channel = field(init=False)

    def start(self) -> None:
        """Starts it and waits until it serves."""
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        log = self.folder / "inference.log"
        environment = {
            **os.environ,
            "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'protos' / 'gen'}",
            "TIDEMILL_BIND": f"127.0.0.1:{self.port}",
            "TIDEMILL_KAFKA_BOOTSTRAP": self.stack.kafka_bootstrap,
            "TIDEMILL_DATABASE_URL": f"sqlite:///{self.folder}/inference.sqlite",
            "TIDEMILL_ARTIFACTS_URL": f"file://{self.artifacts}",
            "TIDEMILL_TRUSTED_MODEL_KEYS": str(self.artifacts / "keys" / "trusted"),
            "TIDEMILL_TRITON_GRPC": self.stack.triton_grpc,
            "TIDEMILL_TRITON_REPOSITORY": str(self.stack.triton_repository),
            "TIDEMILL_TRITON_STAGING": str(self.stack.triton_repository.with_name(f"staging-{self.folder.name}")),
            "TIDEMILL_OTLP_ENDPOINT": self.otlp,
            "TIDEMILL_RECONCILE_PAUSE_S": "0.5",
            # Not the folder of this user's own mesh.
            "TIDEMILL_STATE": str(self.folder),
        }
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.inference"], env=environment, stdout=stream, stderr=stream
            )
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.max_reconnect_backoff_ms", 500)])
        health: Any = health_pb2_grpc.HealthStub(self.channel)

        def serves() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, log.read_text()[-4000:]
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.RpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        wait_until(serves, patience_s=180)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.channel.close()

    def stop(self) -> int:
        """Asks it to end; returns its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self.channel.close()
        return status

    @property
    def stub(self) -> Any:
        """A client."""
        return stubs.InferenceServiceStub(self.channel)

    def publish(self, model: str, build: BuildFolder, patience_s: float = 120) -> Any:
        """Publishes a build; retries so long while Triton is unavailable (2.51 crashes now and then)."""
        request = pb.PublishModelRequest(
            request_id=new_id(),
            model=f"models/{model}",
            artifact_uri=f"file://{build.path}",
            digest=build.digest,
            run="runs/test",
            dataset_version="datasets/test/versions/1",
        )
        end = time.monotonic() + patience_s
        while True:
            try:
                return self.stub.PublishModel(request, timeout=240)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > end:
                    raise
                time.sleep(1)


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    """Kafka and Triton."""
    with running_parts({"kafka", "triton"}, tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="package")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    """Builds, made once."""
    root = tmp_path_factory.mktemp("builds")
    positive = BuildFolder(root / "positive", make_classifier(root / "positive"))
    turned = BuildFolder(root / "turned", make_classifier(root / "turned", weight=-2.0))
    broken = BuildFolder(root / "broken", make_classifier(root / "broken", spoil=True))
    writer = BuildFolder(root / "writer", make_generator(root / "writer", root / "scratch"))
    shutil.copytree(writer.path, root / "second")
    (root / "second" / "NOTES").write_text("another build of the same weights")
    second = BuildFolder(root / "second", finish_generator(root / "second"))
    return Builds(root, positive, turned, broken, writer, second)


@pytest.fixture(scope="package")
def spans() -> Iterator[tuple[SpanReceiver, str]]:
    """A receiver of spans, and its endpoint."""
    receiver = SpanReceiver()
    server = grpc.server(ThreadPoolExecutor(2))
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield receiver, f"http://127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture(scope="package")
def inference(
    stack: StackState, builds: Builds, spans: tuple[SpanReceiver, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InferenceProcess]:
    """The service; at the end its models leave Triton."""
    folder = tmp_path_factory.mktemp(f"inference-{new_id()[-6:]}-")
    process = InferenceProcess(stack, folder, spans[1], builds.root)
    process.start()
    yield process
    for model in process.stub.ListModels(pb.ListModelsRequest(page_size=1000), timeout=10).models:
        process.stub.UnpublishModel(pb.UnpublishModelRequest(model=model.name), timeout=60)
        shutil.rmtree(stack.triton_repository / model.name.removeprefix("models/"), ignore_errors=True)
    assert process.stop() == 0


@pytest.fixture
def model() -> str:
    """A name that no other test uses."""
    return f"test-{new_id()[-12:]}"
