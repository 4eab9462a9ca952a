"""Between the contract's messages and the domain."""

from __future__ import annotations

from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import model_pb2

from services.inference.app.serving import AnsweredPiece, AnsweredPrediction
from services.inference.domain.model import (
    FinishReason,
    Integrity,
    IntegrityState,
    Lineage,
    Message,
    Model,
    ModelVersion,
    Prompt,
    Sampling,
    VersionState,
    model_name,
)
from services.kit.grpc.messages import timestamp

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
_REASONS = {
    FinishReason.NONE: model_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: model_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: model_pb2.FINISH_REASON_LENGTH,
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


def lineage_from(request: pb.PublishModelRequest) -> Lineage:
    """Where a build to publish came from."""
    return Lineage(request.artifact_uri, request.digest, request.run, request.dataset_version)


def prompt_from(request: pb.GenerateRequest | pb.StreamGenerateRequest) -> Prompt:
    """What is to be answered."""
    if request.WhichOneof("input") == "text":
        return Prompt(text=request.text)
    return Prompt(conversation=tuple(Message(m.role, m.content) for m in request.conversation.messages))


def sampling_from(params: model_pb2.SamplingParams) -> Sampling:
    """How tokens are to be chosen."""
    return Sampling(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        seed=params.seed if params.HasField("seed") else None,
        stop=tuple(params.stop),
    )


def prediction_to(item: AnsweredPrediction) -> pb.Prediction:
    """The message of a classified text."""
    found = item.classified
    return pb.Prediction(answer=item.answer, label=found.label, score=found.score, scores=found.scores)


def piece_to(item: AnsweredPiece) -> pb.StreamGenerateResponse:
    """The message of a piece; usage in the last one only."""
    piece = item.piece
    return pb.StreamGenerateResponse(
        answer=item.answer,
        text_delta=piece.text,
        finish_reason=_REASONS[piece.finish_reason],
        usage=_usage(item) if piece.finish_reason else None,
        model_version=item.model_version,
    )


def whole_to(text: str, last: AnsweredPiece) -> pb.GenerateResponse:
    """The message of a whole answer."""
    return pb.GenerateResponse(
        answer=last.answer,
        text=text,
        finish_reason=_REASONS[last.piece.finish_reason],
        usage=_usage(last),
        model_version=last.model_version,
    )


def _usage(item: AnsweredPiece) -> model_pb2.Usage:
    return model_pb2.Usage(prompt_tokens=item.piece.prompt_tokens, completion_tokens=item.piece.completion_tokens)
