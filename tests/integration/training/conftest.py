"""The training service as a process of its own on a real Kafka, and what its tests ask of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from kafka import KafkaConsumer, TopicPartition
from tidemill.training.v1 import run_pb2
from tidemill.training.v1 import training_service_pb2 as pb
from tidemill.training.v1 import training_service_pb2_grpc as stubs

from infra.stack.testing import running_parts
from services.kit.bus.kafka import ensure_topics
from services.kit.bus.topics import TRAINING_EVENTS
from services.kit.storage.signing import TrustedKeys
from services.training.adapters.job import WorkerLock
from tests.integration.training.bases import make_encoder, make_writer, write_reviews
from tests.processes import serves, wait_started
from tests.waiting import wait_for

_ROOT = Path(__file__).parents[3]
M = TypeVar("M", bound=Message)


@pytest.fixture(scope="package")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka with all topics."""
    with running_parts({"kafka"}, tmp_path_factory.mktemp("stack")) as stack:
        ensure_topics(stack.kafka_bootstrap)
        yield stack.kafka_bootstrap


@dataclass(frozen=True)
class RunInputs:
    """What runs are made of."""

    language_model: Path
    encoder: Path
    reviews: Path

    def spec(self, task: str, *, steps: int = 4, **changes: Any) -> run_pb2.TrainingSpec:
        """A small run of a task; `changes` replace fields of the spec."""
        spec = run_pb2.TrainingSpec(
            dataset=run_pb2.DatasetReference(
                name="datasets/reviews/versions/1", uri=self.reviews.as_uri(), digest="0" * 64
            ),
            lora=run_pb2.LoraMethod(r=4, alpha=8),
            optimization=run_pb2.Optimization(
                max_steps=steps, batch_size=8, learning_rate=0.01, warmup_ratio=0.1, checkpoint_every=10
            ),
            evaluation=run_pb2.Evaluation(max_examples=12),
        )
        if task == "generation":
            spec.base_model, spec.model_name = str(self.language_model), "headlines"
            spec.generation.prompt_template = "Write a headline.\n\n{text}"
            spec.generation.target_field = "headline"
            spec.generation.max_input_tokens, spec.generation.max_target_tokens = 96, 12
            spec.compression.variants.extend(["fp32", "int8", "int4"])
        else:
            spec.base_model, spec.model_name = str(self.encoder), "reviews"
            spec.text_classification.label_field, spec.text_classification.max_input_tokens = "label", 32
            spec.compression.variants.extend(["fp32", "int8"])
        spec.MergeFrom(run_pb2.TrainingSpec(**changes))
        return spec


@pytest.fixture(scope="package")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> RunInputs:
    """Base models and a snapshot."""
    folder = tmp_path_factory.mktemp("inputs")
    return RunInputs(make_writer(folder / "llama"), make_encoder(folder / "bert"), write_reviews(folder / "snapshot"))


@dataclass
class TrainingProcess:
    """`python -m services.training` with a state that outlives a kill."""

    bootstrap: str
    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    _open: grpc.Channel | None = None

    @property
    def log(self) -> Path:
        """Its log, over all restarts."""
        return self.folder / "training.log"

    @property
    def trusted(self) -> TrustedKeys:
        """Verifies its builds."""
        return TrustedKeys(self.folder / "keys" / "trusted")

    @property
    def mlflow_uri(self) -> str:
        """The store of its registry."""
        return f"sqlite:///{self.folder}/mlflow.db"

    def start(self) -> None:
        """Starts it and waits until it serves."""
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        environment = {
            **os.environ,
            "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'protos' / 'gen'}",
            "TIDEMILL_BIND": f"127.0.0.1:{self.port}",
            "TIDEMILL_STATE": str(self.folder),
            "TIDEMILL_KAFKA_BOOTSTRAP": self.bootstrap,
            "TIDEMILL_DATABASE_URL": f"sqlite:///{self.folder}/training.sqlite",
            # What tests write beside this folder is in the store, too: data sets and base models.
            "TIDEMILL_ARTIFACTS_URL": self.folder.parent.as_uri(),
            "TIDEMILL_MODEL_ROOTS": str(self.folder.parent),
            "TIDEMILL_MLFLOW_URI": self.mlflow_uri,
            "TIDEMILL_MODELS_DIR": f"{self.folder}/models",
            "TIDEMILL_DOWNLOADS_DIR": f"{self.folder}/downloads",
            "TIDEMILL_SNAPSHOT_CACHE": f"{self.folder}/snapshots",
            "TIDEMILL_MODEL_SIGNING_KEY": f"{self.folder}/keys/signing.pem",
            "TIDEMILL_TRUSTED_MODEL_KEYS": f"{self.folder}/keys/trusted",
        }
        environment.pop("TIDEMILL_OTLP_ENDPOINT", None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.training"], env=environment, stdout=log, stderr=log
            )
        wait_started(self.process, self.log, lambda: serves(self._channel()), 120)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._close()

    def stop(self) -> int:
        """Asks it to end.

        Returns:
            Its exit status.
        """
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self._close()
        return status

    @property
    def stub(self) -> Any:
        return stubs.TrainingServiceStub(self._channel())

    def create(self, spec: run_pb2.TrainingSpec, request_id: str = "") -> run_pb2.Run:
        """Starts a run."""
        run: run_pb2.Run = self.stub.CreateRun(pb.CreateRunRequest(spec=spec, request_id=request_id), timeout=60).run
        return run

    def get(self, name: str) -> run_pb2.Run:
        """Reads a run."""
        run: run_pb2.Run = self.stub.GetRun(pb.GetRunRequest(name=name), timeout=10).run
        return run

    def wait(self, name: str, met: Callable[[run_pb2.Run], object], seconds: float = 240) -> run_pb2.Run:
        """The run once `met` holds."""
        return wait_for(lambda: self.get(name), met, f"the run, see {self.log},", seconds)

    def run_folder(self, name: str) -> Path:
        """Where a run keeps its files."""
        return self.folder.parent / name

    def worker_pid(self, name: str) -> int:
        """Process id of the run's worker."""
        pid = WorkerLock(self.run_folder(name)).holder()
        assert pid is not None, f"no worker of {name} is at work"
        return pid

    def _channel(self) -> grpc.Channel:
        if self._open is None:
            options = [("grpc.max_reconnect_backoff_ms", 500)]
            self._open = grpc.insecure_channel(f"127.0.0.1:{self.port}", options=options)
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


@pytest.fixture(scope="package")
def training(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingProcess]:
    process = TrainingProcess(kafka_bootstrap, tmp_path_factory.mktemp("training"))
    process.start()
    yield process
    if process.process is not None and process.process.poll() is None:
        process.stop()


def warnings_of(run: run_pb2.Run) -> list[str]:
    """A run's warnings, but for that about ties.

    The models of these tests learn for a few steps: their best two tokens are often equal to the last bits, where
    two runtimes may choose differently. `parity_warnings` reports that rightly, on some machines and not on others.
    """
    return [warning for warning in run.warnings if not warning.startswith("compression.variants: the fp32 build")]


def ended(run: run_pb2.Run) -> bool:
    """Whether nothing follows."""
    return run.state in (run_pb2.Run.STATE_SUCCEEDED, run_pb2.Run.STATE_FAILED, run_pb2.Run.STATE_CANCELLED)


def stepped(run: run_pb2.Run, steps: int) -> bool:
    """Whether training has done `steps` steps, or more."""
    return run.progress.phase == "train" and run.progress.done >= steps


def events_about(bootstrap: str, kind: type[M], run: str) -> list[tuple[str, M]]:
    """Event ids and messages of the events of a kind about a run."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, isolation_level="read_committed")
    try:
        partitions = [TopicPartition(TRAINING_EVENTS.name, number) for number in range(TRAINING_EVENTS.partitions)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning(*partitions)
        found: list[tuple[str, M]] = []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(timeout_ms=500).values():
                for record in records:
                    headers = dict(record.headers)
                    if headers["ce_type"].decode().endswith(f".{kind.__name__}"):
                        found.append((headers["ce_id"].decode(), kind.FromString(record.value)))
        return [(event_id, message) for event_id, message in found if message.run == run]  # type: ignore[attr-defined]
    finally:
        consumer.close()


def log_messages(path: Path) -> list[str]:
    """The messages of a structured log."""
    lines = path.read_text(errors="replace").splitlines()
    return [str(json.loads(line)["message"]) for line in lines if line.startswith('{"@timestamp"')]
