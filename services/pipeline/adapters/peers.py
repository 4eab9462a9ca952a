"""Implements the pipeline's ports by calls to the other services, over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from tidemill.cleaning.v1 import cleaning_service_pb2 as cleaning_pb
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceStub
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion
from tidemill.inference.v1 import inference_service_pb2 as inference_pb
from tidemill.inference.v1 import route_pb2
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from tidemill.ingest.v1 import ingest_service_pb2 as ingest_pb
from tidemill.ingest.v1 import source_service_pb2 as source_pb
from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tidemill.ingest.v1.source_import_pb2 import Import
from tidemill.ingest.v1.source_service_pb2_grpc import SourceServiceStub
from tidemill.training.v1 import training_service_pb2 as training_pb
from tidemill.training.v1.run_pb2 import Run
from tidemill.training.v1.training_service_pb2_grpc import TrainingServiceStub

from services.kit.errors import NotFoundError
from services.kit.failure import Failure
from services.kit.grpc.errors import translate_rpc_errors
from services.kit.ids import new_id
from services.pipeline.app.ports import Published, Work
from services.pipeline.domain.cycle import Json

# A source is hashed before CreateImport answers; a model is loaded before PublishModel does.
_IMPORT_DEADLINE_S = 300.0
# Of several processes on a cluster, whose nodes are asked first.
_RUN_DEADLINE_S = 90.0
_PUBLISH_DEADLINE_S = 300.0
# Every snapshot of a data set with feedback is read.
_ERASE_DEADLINE_S = 600.0
_RECORDS_AT_ONCE = 10_000

_DONE: dict[type[Message], frozenset[int]] = {
    Import: frozenset({Import.STATE_SUCCEEDED, Import.STATE_FAILED, Import.STATE_CANCELLED}),
    DatasetVersion: frozenset(
        {DatasetVersion.STATE_READY, DatasetVersion.STATE_FAILED, DatasetVersion.STATE_CANCELLED}
    ),
    Run: frozenset({Run.STATE_SUCCEEDED, Run.STATE_FAILED, Run.STATE_CANCELLED}),
}


def _work(resource: Import | DatasetVersion | Run) -> Work:
    failed = resource.HasField("failure")
    failure = resource.failure
    return Work(
        name=resource.name,
        body=_json(resource),
        done=resource.state in _DONE[type(resource)],
        cancelled=resource.state == type(resource).STATE_CANCELLED,
        failure=Failure(failure.reason, failure.message, dict(failure.metadata)) if failed else None,
        progress=_json(resource.progress) if resource.HasField("progress") else None,
        reused=resource.reused,
    )


def _json(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


async def _watched(
    call: grpc.aio.UnaryStreamCall[Any, Any], pick: Callable[[Any], Import | DatasetVersion | Run], peer: str
) -> AsyncIterator[Work]:
    try:
        with translate_rpc_errors(peer):
            async for response in call:
                yield _work(pick(response))
    finally:
        # When the caller stops watching, the stream at the peer must be closed.
        call.cancel()


class Imports:
    """Implements `services.pipeline.app.ports.Worker` with ingest's imports."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = IngestServiceStub(channel)

    async def start(self, order: Json, request_id: str) -> Work:
        """See the port; the order is a CreateImportRequest."""
        request = ParseDict({**order, "request_id": request_id}, ingest_pb.CreateImportRequest())
        with translate_rpc_errors("ingest"):
            response = await self._stub.CreateImport(request, timeout=_IMPORT_DEADLINE_S)
        return _work(response.source_import)

    def watch(self, name: str) -> AsyncIterator[Work]:
        """See the port."""
        call = self._stub.WatchImport(ingest_pb.WatchImportRequest(name=name))
        return _watched(call, lambda response: response.source_import, "ingest")

    async def cancel(self, name: str, request_id: str) -> None:
        """See the port."""
        with translate_rpc_errors("ingest"):
            await self._stub.CancelImport(ingest_pb.CancelImportRequest(request_id=request_id, name=name))


class DeclaredSources:
    """Implements `services.pipeline.app.ports.SourceDeclarations` with ingest."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = SourceServiceStub(channel)

    async def declare(self, pipeline: str, sources: Sequence[Json], request_id: str) -> None:
        """See the port."""
        order = {"request_id": request_id, "pipeline": f"pipelines/{pipeline}", "specs": list(sources)}
        with translate_rpc_errors("ingest"):
            await self._stub.DeclareSources(ParseDict(order, source_pb.DeclareSourcesRequest()))


class DatasetVersions:
    """Implements `Worker` and `Datasets` of `services.pipeline.app.ports`, and `RecordCounts`, with cleaning."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = CleaningServiceStub(channel)

    async def put(self, name: str, spec: Json) -> None:
        """See the port."""
        order = {"request_id": new_id(), "name": name, "spec": spec}
        with translate_rpc_errors("cleaning"):
            await self._stub.PutDataset(ParseDict(order, cleaning_pb.PutDatasetRequest()))

    async def count(self, sources: Sequence[str], after: int, tenants: Sequence[str]) -> tuple[int, int]:
        """See the port."""
        request = cleaning_pb.CountRecordsRequest(sources=sources, after=after, tenants=tenants)
        with translate_rpc_errors("cleaning"):
            response = await self._stub.CountRecords(request)
        return response.count, response.newest_arrival

    async def erase(self, person: str, records: Sequence[str], request_id: str) -> Sequence[str]:
        """See `services.pipeline.app.exclusions.TaughtRecords`."""
        found: set[str] = set()
        for start in range(0, max(1, len(records)), _RECORDS_AT_ONCE):
            request = cleaning_pb.EraseFeedbackRequest(
                request_id=f"{request_id}-{start}", person=person, record_ids=records[start : start + _RECORDS_AT_ONCE]
            )
            with translate_rpc_errors("cleaning"):
                response = await self._stub.EraseFeedback(request, timeout=_ERASE_DEADLINE_S)
            found.update(response.dataset_versions)
        return sorted(found)

    async def start(self, order: Json, request_id: str) -> Work:
        """See the port; the order is a BuildDatasetVersionRequest."""
        request = ParseDict({**order, "request_id": request_id}, cleaning_pb.BuildDatasetVersionRequest())
        with translate_rpc_errors("cleaning"):
            response = await self._stub.BuildDatasetVersion(request)
        return _work(response.dataset_version)

    def watch(self, name: str) -> AsyncIterator[Work]:
        """See the port."""
        call = self._stub.WatchDatasetVersion(cleaning_pb.WatchDatasetVersionRequest(name=name))
        return _watched(call, lambda response: response.dataset_version, "cleaning")

    async def cancel(self, name: str, request_id: str) -> None:
        """See the port."""
        request = cleaning_pb.CancelDatasetVersionRequest(request_id=request_id, name=name)
        with translate_rpc_errors("cleaning"):
            await self._stub.CancelDatasetVersion(request)


class Runs:
    """Implements `services.pipeline.app.ports.Worker` with training's runs."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = TrainingServiceStub(channel)

    async def start(self, order: Json, request_id: str) -> Work:
        """See the port; the order is a CreateRunRequest."""
        request = ParseDict({**order, "request_id": request_id}, training_pb.CreateRunRequest())
        with translate_rpc_errors("training"):
            response = await self._stub.CreateRun(request, timeout=_RUN_DEADLINE_S)
        return _work(response.run)

    def watch(self, name: str) -> AsyncIterator[Work]:
        """See the port."""
        call = self._stub.WatchRun(training_pb.WatchRunRequest(name=name))
        return _watched(call, lambda response: response.run, "training")

    async def cancel(self, name: str, request_id: str) -> None:
        """See the port."""
        with translate_rpc_errors("training"):
            await self._stub.CancelRun(training_pb.CancelRunRequest(request_id=request_id, name=name))


class ServedModels:
    """Implements `services.pipeline.app.ports.Models` with inference and training's registry."""

    def __init__(self, inference: grpc.aio.Channel, training: grpc.aio.Channel) -> None:
        self._inference: Any = InferenceServiceStub(inference)
        self._training: Any = TrainingServiceStub(training)

    async def publish(
        self, model: str, uri: str, digest: str, run: str, dataset_version: str, request_id: str, *, beside: bool
    ) -> Published:
        """See the port."""
        request = inference_pb.PublishModelRequest(
            request_id=request_id,
            model=model,
            artifact_uri=uri,
            digest=digest,
            run=run,
            dataset_version=dataset_version,
            role=route_pb2.VERSION_ROLE_CANDIDATE if beside else route_pb2.VERSION_ROLE_UNSPECIFIED,
        )
        with translate_rpc_errors("inference"):
            response = await self._inference.PublishModel(request, timeout=_PUBLISH_DEADLINE_S)
        return Published(response.model_version.name, response.reused)

    async def serving(self, model: str) -> str:
        """See the port."""
        try:
            with translate_rpc_errors("inference"):
                response = await self._inference.GetRoute(inference_pb.GetRouteRequest(model=model))
        except NotFoundError:
            return ""
        return str(response.route.serving)

    async def promote(self, run: str, request_id: str) -> None:
        """See the port."""
        with translate_rpc_errors("training"):
            await self._training.PromoteRun(training_pb.PromoteRunRequest(request_id=request_id, name=run))
