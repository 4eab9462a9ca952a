"""Inference and the gateway as processes of their own, on a real Triton and Kafka, with a receiver of their spans."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import inference_service_pb2_grpc as stubs

from infra.stack.state import StackState
from infra.stack.testing import running_parts
from services.kit.ids import new_id
from services.serving.adapters.route_file import RouteFile
from tests.integration.inference.builds import finish_generator, make_classifier, make_generator
from tests.models import TOOLS_CHAT
from tests.processes import serves, wait_started
from tests.publishing import publish_when_available
from tests.service_process import free_port
from tests.waiting import wait_until

_ROOT = Path(__file__).parents[3]
_RECONNECT = [("grpc.max_reconnect_backoff_ms", 500)]


@dataclass(frozen=True)
class BuildFolder:
    """A build and its digest."""

    path: Path
    digest: str


@dataclass(frozen=True)
class Builds:
    """What the tests publish, below `root`. `positive` calls good words positive, `turned` the other way
    round and gives no embeddings."""

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


def _publication(model: str, build: BuildFolder) -> pb.PublishModelRequest:
    return pb.PublishModelRequest(
        request_id=new_id(),
        model=f"models/{model}",
        artifact_uri=f"file://{build.path}",
        digest=build.digest,
        run="runs/test",
        dataset_version="datasets/test/versions/1",
    )


@dataclass
class InferenceProcess:
    """Both planes, with a state that outlives a kill: `services.inference`, and the gateway, which answers.

    What kills or starts it is about inference; the gateway runs from the first start to the stop.
    """

    stack: StackState
    folder: Path
    otlp: str
    artifacts: Path
    drain_s: float = 1.0
    """How long a version stays loaded after it left its route."""
    control_port: int = 0
    """Of inference."""
    port: int = 0
    """Of the gateway's gRPC."""
    http: int = 0
    """Of the gateway's HTTP."""
    process: subprocess.Popen[bytes] | None = None
    gateway: subprocess.Popen[bytes] | None = None
    channel: grpc.Channel = field(init=False)
    """To the gateway."""
    control_channel: grpc.Channel = field(init=False)

    def start(self) -> None:
        """Starts inference, and the gateway if it does not run, and waits until they serve."""
        self.control_port = self.control_port or free_port()
        self.start_control()
        if self.gateway is None:
            self.port, self.http = free_port(), free_port()
            self.start_gateway()

    def _environment(self, name: str, port: int) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'protos' / 'gen'}",
            "TIDEMILL_BIND": f"127.0.0.1:{port}",
            "TIDEMILL_KAFKA_BOOTSTRAP": self.stack.kafka_bootstrap,
            "TIDEMILL_DATABASE_URL": f"sqlite:///{self.folder}/{name}.sqlite",
            "TIDEMILL_TRITON_GRPC": self.stack.triton_grpc,
            "TIDEMILL_OTLP_ENDPOINT": self.otlp,
            # Not the folder of this user's own mesh.
            "TIDEMILL_STATE": str(self.folder),
        }

    def _run(self, module: str, name: str, settings: dict[str, str], port: int) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", module],
                env=self._environment(name, port) | settings,
                stdout=stream,
                stderr=stream,
            )

    def _wait(self, process: subprocess.Popen[bytes], channel: grpc.Channel, name: str) -> None:
        wait_started(process, self.folder / f"{name}.log", lambda: serves(channel), 180)

    def start_control(self) -> None:
        """Starts inference and waits until it serves."""
        settings = {
            "TIDEMILL_ARTIFACTS_URL": f"file://{self.artifacts}",
            "TIDEMILL_TRUSTED_MODEL_KEYS": str(self.artifacts / "keys" / "trusted"),
            "TIDEMILL_TRITON_REPOSITORY": str(self.stack.triton_repository),
            "TIDEMILL_TRITON_STAGING": str(self.stack.triton_repository.with_name(f"staging-{self.folder.name}")),
            "TIDEMILL_RECONCILE_PAUSE_S": "0.5",
            "TIDEMILL_DRAIN_S": str(self.drain_s),
        }
        self.process = self._run("services.inference", "inference", settings, self.control_port)
        self.control_channel = grpc.insecure_channel(f"127.0.0.1:{self.control_port}", _RECONNECT)
        self._wait(self.process, self.control_channel, "inference")

    def start_gateway(self) -> None:
        """Starts the gateway and waits until it serves."""
        settings = {
            "TIDEMILL_AUTH": "false",
            "TIDEMILL_HTTP_BIND": f"127.0.0.1:{self.http}",
            "TIDEMILL_INFERENCE_ADDRESS": f"127.0.0.1:{self.control_port}",
        }
        self.gateway = self._run("gateway", "gateway", settings, self.port)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", _RECONNECT)
        self._wait(self.gateway, self.channel, "gateway")

    def kill(self) -> None:
        """kill -9 of inference."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.control_channel.close()

    def kill_gateway(self) -> None:
        """kill -9 of the gateway."""
        assert self.gateway is not None
        self.gateway.kill()
        self.gateway.wait()
        self.channel.close()

    def stop_gateway(self) -> int:
        """Asks the gateway to end; returns its exit status."""
        assert self.gateway is not None
        self.gateway.send_signal(signal.SIGTERM)
        status = self.gateway.wait(60)
        self.channel.close()
        return status

    def stop(self) -> int:
        """Asks both to end; returns an exit status that is 0 if both are."""
        assert self.process is not None
        doors = self.stop_gateway()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self.control_channel.close()
        return doors or status

    @property
    def stub(self) -> Any:
        """A client of the gateway."""
        return stubs.InferenceServiceStub(self.channel)

    @property
    def control(self) -> Any:
        """A client of inference itself."""
        return stubs.InferenceServiceStub(self.control_channel)

    def publish(self, model: str, build: BuildFolder, patience_s: float = 120) -> Any:
        """Publishes a build; retries for this long while Triton is unavailable (2.51 crashes now and then)."""
        return publish_when_available(self.control, _publication(model, build), patience_s)

    def publish_once(self, model: str, build: BuildFolder) -> Any:
        """Publishes a build without a second try."""
        return self.control.PublishModel(_publication(model, build), timeout=60)

    def wait_routed(self, route: Any) -> None:
        """Waits until the gateway routes as a route says, whose news reach it a moment after the call that set it."""
        file, wanted = RouteFile(self.folder / "gateway" / "routes.json"), route.model.removeprefix("models/")
        wait_until(
            lambda: (wanted, route.etag) in [(each.model, each.etag) for each in file.load() or ()],
            f"the route of {route.model}",
        )


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
    turned = BuildFolder(root / "turned", make_classifier(root / "turned", weight=-2.0, embeds=False))
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
        for folder in stack.triton_repository.glob(f"{model.name.removeprefix('models/')}.*"):
            shutil.rmtree(folder, ignore_errors=True)
    assert process.stop() == 0


@pytest.fixture(scope="package")
def caller(inference: InferenceProcess, builds: Builds) -> str:
    """A published model that writes, whose chat template knows tools."""
    folder = builds.root / "caller"
    build = BuildFolder(
        folder, make_generator(folder, folder.with_name("scratch-caller"), chat=TOOLS_CHAT, context=2048)
    )
    return str(inference.publish("test-caller", build).model_version.name.split("/")[1])


@pytest.fixture
def model(inference: InferenceProcess) -> Iterator[str]:
    """A name that no other test uses; what was published under it is unpublished, so that Triton holds few models."""
    name = f"test-{new_id()[-12:]}"
    yield name
    with contextlib.suppress(grpc.RpcError):
        inference.control.UnpublishModel(pb.UnpublishModelRequest(model=f"models/{name}"), timeout=60)
