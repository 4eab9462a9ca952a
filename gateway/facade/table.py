"""The public methods of each service, and which peer serves them.

A method that is not in the table does not exist at the gateway. Starting runs, publishing builds and watching
routes are internal to the mesh, and so is Triton's repository.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from tidemill.cleaning.v1 import cleaning_service_pb2
from tidemill.inference.v1 import inference_service_pb2
from tidemill.ingest.v1 import dead_letter_service_pb2, ingest_service_pb2, source_service_pb2
from tidemill.pipeline.v1 import (
    exclusion_service_pb2,
    judge_service_pb2,
    pipeline_service_pb2,
    review_service_pb2,
    rollout_service_pb2,
    trigger_service_pb2,
)
from tidemill.telemetry.v1 import telemetry_service_pb2
from tidemill.training.v1 import training_service_pb2
from tritonclient.grpc import service_pb2

OWN = "gateway"
"""The gateway itself as the peer: it answers with a model in Triton."""


@dataclass(frozen=True, slots=True)
class PublicService:
    """A service with public methods."""

    peer: str
    """Name of the peer, see `gateway.peers.PEERS`; `OWN` for the gateway itself."""
    descriptor: ServiceDescriptor
    methods: frozenset[str] | None = None
    """Public methods; all when None."""

    @property
    def name(self) -> str:
        """Full name, such as `tidemill.ingest.v1.IngestService`."""
        return str(self.descriptor.full_name)

    def public_methods(self) -> Iterator[MethodDescriptor]:
        """Descriptors of the public methods."""
        known = {method.name for method in self.descriptor.methods}
        if self.methods is not None and (unknown := self.methods - known):
            raise ValueError(f"{self.name} has no method {', '.join(sorted(unknown))}.")
        return (m for m in self.descriptor.methods if self.methods is None or m.name in self.methods)


def _service(module: object, name: str) -> ServiceDescriptor:
    descriptor: ServiceDescriptor = module.DESCRIPTOR.services_by_name[name]  # type: ignore[attr-defined]
    return descriptor


def public_services() -> tuple[PublicService, ...]:
    """The table."""
    return (
        PublicService("ingest", _service(ingest_service_pb2, "IngestService")),
        PublicService("ingest", _service(dead_letter_service_pb2, "DeadLetterService")),
        PublicService(
            "ingest",
            _service(source_service_pb2, "SourceService"),
            # DeclareSources is the pipeline service's.
            frozenset(
                {
                    "PutSource",
                    "GetSource",
                    "ListSources",
                    "PauseSource",
                    "ResumeSource",
                    "DeleteSource",
                    "CollectSource",
                }
            ),
        ),
        PublicService(
            "cleaning",
            _service(cleaning_service_pb2, "CleaningService"),
            frozenset(
                {
                    "CleanText",
                    "CountRecords",
                    "GetRecord",
                    "ExplainRecord",
                    "PutDataset",
                    "GetDataset",
                    "ListDatasets",
                    "BuildDatasetVersion",
                    "GetDatasetVersion",
                    "GetDatasetCard",
                    "SampleRejections",
                    "ListDatasetVersions",
                    "CancelDatasetVersion",
                    "WatchDatasetVersion",
                }
            ),
        ),
        PublicService(
            "training",
            _service(training_service_pb2, "TrainingService"),
            frozenset({"CreateTrial", "CancelRun", "GetRun", "ListRuns", "WatchRun", "PlanTraining", "AdviseTraining"}),
        ),
        PublicService(
            "inference",
            _service(inference_service_pb2, "InferenceService"),
            frozenset(
                {
                    "GetModel",
                    "ListModels",
                    "ListModelVersions",
                    "GetRoute",
                    "ListRoutes",
                    "SetRoute",
                    "PromoteVersion",
                    "SetCascade",
                    "RollBackModel",
                    "UnpublishModel",
                }
            ),
        ),
        PublicService(
            OWN,
            _service(inference_service_pb2, "InferenceService"),
            frozenset({"Predict", "Embed", "Generate", "StreamGenerate"}),
        ),
        PublicService(
            "pipeline",
            _service(pipeline_service_pb2, "PipelineService"),
            frozenset(
                {
                    "CreateCycle",
                    "GetCycle",
                    "ListCycles",
                    "CancelCycle",
                    "WatchCycle",
                    "RecordFeedback",
                    "BatchRecordFeedback",
                    "ListFeedback",
                    "GetCapturedAnswer",
                    "ListCapturedAnswers",
                }
            ),
        ),
        PublicService("pipeline", _service(trigger_service_pb2, "TriggerService")),
        PublicService("pipeline", _service(rollout_service_pb2, "RolloutService")),
        PublicService("pipeline", _service(review_service_pb2, "ReviewService")),
        PublicService("pipeline", _service(judge_service_pb2, "JudgeService")),
        PublicService("pipeline", _service(exclusion_service_pb2, "ExclusionService")),
        PublicService("telemetry", _service(telemetry_service_pb2, "TelemetryService")),
        PublicService(
            OWN,
            _service(service_pb2, "GRPCInferenceService"),
            frozenset(
                {
                    "ServerLive",
                    "ServerReady",
                    "ServerMetadata",
                    "ModelReady",
                    "ModelMetadata",
                    "ModelConfig",
                    "ModelStatistics",
                    "ModelInfer",
                    "ModelStreamInfer",
                }
            ),
        ),
    )
