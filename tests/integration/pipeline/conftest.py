"""The pipeline service as a process of its own, on a real Kafka, between peers that speak the real contracts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from tidemill.cleaning.v1 import cleaning_service_pb2 as cleaning_pb
from tidemill.cleaning.v1 import cleaning_service_pb2_grpc as cleaning_grpc
from tidemill.cleaning.v1.dataset_pb2 import Dataset, DatasetVersion
from tidemill.inference.v1 import inference_service_pb2 as inference_pb
from tidemill.inference.v1 import inference_service_pb2_grpc as inference_grpc
from tidemill.inference.v1.model_pb2 import ModelVersion
from tidemill.ingest.v1 import ingest_service_pb2 as ingest_pb
from tidemill.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from tidemill.ingest.v1 import source_service_pb2 as source_pb
from tidemill.ingest.v1 import source_service_pb2_grpc as source_grpc
from tidemill.ingest.v1.source_import_pb2 import Import
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from tidemill.training.v1 import training_service_pb2 as training_pb
from tidemill.training.v1 import training_service_pb2_grpc as training_grpc
from tidemill.training.v1.run_pb2 import Report, Run

from infra.stack.state import StackState
from infra.stack.testing import running_parts
from services.kit.bus.kafka import ensure_topics
from tests.service_process import ServiceProcess
from tests.unit.pipeline.peers import DIGEST, report


@dataclass
class Peers(
    ingest_grpc.IngestServiceServicer,
    source_grpc.SourceServiceServicer,
    cleaning_grpc.CleaningServiceServicer,
    training_grpc.TrainingServiceServicer,
    inference_grpc.InferenceServiceServicer,
):
    """Ingest, cleaning, training and inference on one port; a run ends when `trained` is set.

    Cleaning has `newest_arrival` records, one of each moment up to that.
    """

    trained: threading.Event = field(default_factory=threading.Event)
    requests: dict[str, list[Any]] = field(default_factory=dict)
    newest_arrival: int = 0

    def _seen(self, request: Any) -> None:
        self.requests.setdefault(type(request).__name__, []).append(request)

    def CreateImport(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen(request)
        done = Import(name="imports/i1", state=Import.STATE_SUCCEEDED, record_count=3, reused=True)
        return ingest_pb.CreateImportResponse(source_import=done)

    def DeclareSources(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen(request)
        return source_pb.DeclareSourcesResponse()

    def CountRecords(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen(request)
        new = self.newest_arrival - request.after
        return cleaning_pb.CountRecordsResponse(count=max(0, new), newest_arrival=self.newest_arrival)

    def PutDataset(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen(request)
        return cleaning_pb.PutDatasetResponse(dataset=Dataset(name=request.name, spec=request.spec))

    def BuildDatasetVersion(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen(request)
        version = DatasetVersion(name=f"{request.dataset}/versions/1", state=DatasetVersion.STATE_BUILDING)
        return cleaning_pb.BuildDatasetVersionResponse(dataset_version=version)

    def WatchDatasetVersion(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self._seen(request)
        version = DatasetVersion(
            name=request.name,
            state=DatasetVersion.STATE_READY,
            uri="file:///d",
            digest=DIGEST,
            records_in=3,
            train_count=2,
            holdout_count=1,
        )
        yield cleaning_pb.WatchDatasetVersionResponse(dataset_version=version)

    def CreateRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen(request)
        return training_pb.CreateRunResponse(run=Run(name="runs/r1", state=Run.STATE_QUEUED))

    def WatchRun(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self._seen(request)
        yield training_pb.WatchRunResponse(run=Run(name="runs/r1", state=Run.STATE_RUNNING))
        while not self.trained.wait(0.1):
            if not context.is_active():
                return
        found = json_format.ParseDict(report(fp32=0.2, int8=0.199), Report())
        yield training_pb.WatchRunResponse(run=Run(name="runs/r1", state=Run.STATE_SUCCEEDED, report=found))

    def CancelRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen(request)
        return training_pb.CancelRunResponse(run=Run(name="runs/r1", state=Run.STATE_CANCELLED))

    def PromoteRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen(request)
        return training_pb.PromoteRunResponse(run=Run(name="runs/r1"))

    def PublishModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen(request)
        version = ModelVersion(name=f"{request.model}/versions/1", state=ModelVersion.STATE_SERVING)
        return inference_pb.PublishModelResponse(model_version=version)


class PipelineProcess(ServiceProcess):
    """A process of the pipeline, with all peers at one address."""

    def __init__(self, kafka: str, peers_address: str, folder: Path) -> None:
        settings = {
            "TIDEMILL_KAFKA_BOOTSTRAP": kafka,
            "TIDEMILL_DATABASE_URL": f"sqlite:///{folder}/pipeline.sqlite",
        }
        for peer in ("INGEST", "CLEANING", "TRAINING", "INFERENCE"):
            settings[f"TIDEMILL_{peer}_ADDRESS"] = peers_address
        super().__init__("pipeline", folder, settings)


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    """A Kafka with all topics."""
    with running_parts({"kafka"}, tmp_path_factory.mktemp("stack")) as state:
        ensure_topics(state.kafka_bootstrap)
        yield state


@pytest.fixture(scope="package")
def kafka(stack: StackState) -> str:
    return stack.kafka_bootstrap


@pytest.fixture
def peers() -> Peers:
    """The peers of one test."""
    return Peers()  # type: ignore[abstract]  # what no test calls answers UNIMPLEMENTED


@pytest.fixture
def pipeline(kafka: str, peers: Peers, tmp_path: Path) -> Iterator[PipelineProcess]:
    """A running pipeline service between the peers."""
    server = grpc.server(futures.ThreadPoolExecutor(16))
    ingest_grpc.add_IngestServiceServicer_to_server(peers, server)
    source_grpc.add_SourceServiceServicer_to_server(peers, server)
    cleaning_grpc.add_CleaningServiceServicer_to_server(peers, server)
    training_grpc.add_TrainingServiceServicer_to_server(peers, server)
    inference_grpc.add_InferenceServiceServicer_to_server(peers, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    process = PipelineProcess(kafka, address, tmp_path)
    process.start()
    yield process
    process.kill()
    server.stop(None).wait()


@pytest.fixture
def stub(pipeline: PipelineProcess) -> Iterator[PipelineServiceStub]:
    """A client; it outlives a kill."""
    with pipeline.connect() as channel:
        yield PipelineServiceStub(channel)
