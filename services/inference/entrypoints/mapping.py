"""Between the contract's messages and the domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import model_pb2

from services.inference.domain.model import Integrity, IntegrityState, Lineage, Model, ModelVersion, VersionState
from services.inference.domain.route import Cause, RouteEntry
from services.kit.grpc.messages import timestamp
from services.serving.adapters.route_messages import role_from
from services.serving.domain.names import model_name

_STATES = {
    VersionState.LOADING: model_pb2.ModelVersion.STATE_LOADING,
    VersionState.SERVING: model_pb2.ModelVersion.STATE_SERVING,
    VersionState.RETIRED: model_pb2.ModelVersion.STATE_RETIRED,
    VersionState.FAILED: model_pb2.ModelVersion.STATE_FAILED,
}
_INTEGRITY = {
    IntegrityState.UNKNOWN: model_pb2.Integrity.STATE_UNSPECIFIED,
    IntegrityState.VERIFIED: model_pb2.Integrity.STATE_VERIFIED,
    IntegrityState.DAMAGED: model_pb2.Integrity.STATE_DAMAGED,
    IntegrityState.UNTRUSTED: model_pb2.Integrity.STATE_UNTRUSTED,
}


def version_to(version: ModelVersion) -> model_pb2.ModelVersion:
    """The message of a version."""
    return model_pb2.ModelVersion(
        name=version.name,
        create_time=timestamp(version.create_time),
        update_time=timestamp(version.update_time),
        state=_STATES[version.state],
        artifact_uri=version.lineage.artifact_uri,
        digest=version.lineage.digest,
        precision=version.build.precision,
        task=version.build.task.value,
        run=version.lineage.run,
        dataset_version=version.lineage.dataset_version,
        message=version.message,
        size_bytes=version.build.size_bytes,
        integrity=_integrity_to(version.integrity),
    )


def _integrity_to(integrity: Integrity) -> model_pb2.Integrity:
    return model_pb2.Integrity(
        state=_INTEGRITY[integrity.state],
        verify_time=timestamp(integrity.verify_time) if integrity.verify_time else None,
        message=integrity.message,
    )


def model_to(model: Model) -> model_pb2.Model:
    """The message of a model."""
    serving = model.serving
    return model_pb2.Model(
        name=model_name(model.name),
        create_time=timestamp(model.create_time),
        update_time=timestamp(model.update_time),
        serving=version_to(serving) if serving else None,
        labels=serving.build.labels if serving else (),
        prompt_template=serving.build.prompt_template if serving else "",
    )


def entries_from(request: pb.SetRouteRequest) -> Sequence[RouteEntry]:
    """The versions of a route that is to be set."""
    return [RouteEntry(entry.version, role_from(entry.role), entry.weight) for entry in request.entries]


def cause_of(request: Message, context: Any) -> Cause:
    """Who wants a change of a route, as the gateway names the caller in `x-tidemill-key`, by which call, and why."""
    given = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    method = request.DESCRIPTOR.name.removesuffix("Request")
    return Cause(method, given.get("x-tidemill-key", ""), getattr(request, "reason", ""))


def lineage_from(request: pb.PublishModelRequest) -> Lineage:
    """Where a build to publish came from."""
    return Lineage(request.artifact_uri, request.digest, request.run, request.dataset_version)
