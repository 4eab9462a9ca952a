"""The doors of a mesh that speak gRPC."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tritonclient.grpc as triton
from tidemill.cleaning.v1.cleaning_service_pb2 import CleanTextRequest
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceStub
from tidemill.inference.v1 import inference_service_pb2 as inference_pb
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from tidemill.inference.v1.model_pb2 import SamplingParams
from tidemill.ingest.v1 import ingest_service_pb2 as ingest_pb
from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tidemill.ingest.v1.record_pb2 import Record
from tidemill.pipeline.v1 import pipeline_service_pb2 as pipeline_pb
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from tritonclient.grpc import service_pb2 as v2_pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

from tests.load.caller import CLASSIFIER, DATASET, SOURCE, TIMEOUT_S, WRITER, Caller, Door, RefusedError, rpc_errors
from tests.load.http_doors import WRITTEN, record_text

_INFERENCE, _INGEST = "/tidemill.inference.v1.InferenceService", "/tidemill.ingest.v1.IngestService"
_PIPELINE, _V2 = "/tidemill.pipeline.v1.PipelineService", "/inference.GRPCInferenceService"
_MODEL_LOOK_UPS = ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")


def _predict(caller: Caller, mark: str) -> None:
    request = inference_pb.PredictRequest(model=f"models/{CLASSIFIER}", texts=[f"good {mark}", f"bad {mark}"])
    answer = caller.ask(InferenceServiceStub(caller.channel).Predict, request)
    assert [item.label for item in answer.predictions] == ["positive", "negative"]
    for item in answer.predictions:
        caller.note_answer(item.answer)


def _embed(caller: Caller, mark: str) -> None:
    request = inference_pb.EmbedRequest(model=f"models/{CLASSIFIER}", texts=[f"good {mark}", f"bad {mark}"])
    first, second = caller.ask(InferenceServiceStub(caller.channel).Embed, request).embeddings
    assert len(first.values) == len(second.values) > 0
    assert first.values != second.values


def _generate(caller: Caller, mark: str) -> None:
    sampling = SamplingParams(max_tokens=WRITTEN)
    request = inference_pb.GenerateRequest(model=f"models/{WRITER}", text=mark, sampling=sampling)
    caller.note_answer(caller.ask(InferenceServiceStub(caller.channel).Generate, request).answer)


def _stream_generate(caller: Caller, mark: str) -> None:
    sampling = SamplingParams(max_tokens=WRITTEN)
    request = inference_pb.StreamGenerateRequest(model=f"models/{WRITER}", text=mark, sampling=sampling)
    pieces = caller.ask(InferenceServiceStub(caller.channel).StreamGenerate, request)
    assert pieces[-1].finish_reason
    caller.note_answer(pieces[-1].answer)


def _v2(caller: Caller, mark: str) -> None:
    tensor = triton.InferInput("text", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[f"good room {mark}"]], dtype=object))
    try:
        result = caller.triton.infer(CLASSIFIER, [tensor], headers=dict(caller.metadata), client_timeout=TIMEOUT_S)
    except InferenceServerException as error:
        raise RefusedError(str(error.status()).removeprefix("StatusCode."), str(error)) from error
    assert result.as_numpy("scores") is not None


def _v2_stream(caller: Caller, mark: str) -> None:
    request = v2_pb.ModelInferRequest(model_name=WRITER, id=mark)
    text = f"the room {mark}".encode()
    for name, kind, content in (
        ("text", "BYTES", len(text).to_bytes(4, "little") + text),
        ("max_tokens", "INT32", WRITTEN.to_bytes(4, "little")),
    ):
        request.inputs.add(name=name, datatype=kind, shape=[1])
        request.raw_input_contents.append(content)
    # With it an error is the status of the stream, as at all other doors.
    metadata = (*caller.metadata, ("triton_grpc_error", "true"))
    with rpc_errors():
        method = GRPCInferenceServiceStub(caller.channel).ModelStreamInfer
        answers = list(method(iter([request]), metadata=metadata, timeout=TIMEOUT_S))
    assert [answer.error_message for answer in answers if answer.error_message] == []
    assert {answer.infer_response.id for answer in answers if answer.infer_response.outputs} == {mark}


def _look_up(caller: Caller, _mark: str) -> None:
    stub, v2 = InferenceServiceStub(caller.channel), GRPCInferenceServiceStub(caller.channel)
    name = f"models/{CLASSIFIER}"
    assert caller.ask(stub.GetModel, inference_pb.GetModelRequest(name=name)).model.name == name
    assert caller.ask(stub.ListModels, inference_pb.ListModelsRequest()).models
    assert caller.ask(stub.ListModelVersions, inference_pb.ListModelVersionsRequest(model=name)).model_versions
    assert caller.ask(stub.GetRoute, inference_pb.GetRouteRequest(model=name)).route.model == name
    assert caller.ask(stub.ListRoutes, inference_pb.ListRoutesRequest()).routes
    assert caller.ask(v2.ServerMetadata, v2_pb.ServerMetadataRequest()).name
    for method in _MODEL_LOOK_UPS:
        caller.ask(getattr(v2, method), getattr(v2_pb, f"{method}Request")(name=CLASSIFIER))


def _ingest(caller: Caller, mark: str) -> None:
    text = record_text(mark)
    request = ingest_pb.IngestRecordsRequest(
        records=[Record(source=SOURCE, record_id=mark, text=text)], request_id=mark
    )
    caller.ledgers.records.sent(mark, text)
    caller.ask(IngestServiceStub(caller.channel).IngestRecords, request)
    caller.ledgers.records.accepted(mark, text)


def _stream_records(caller: Caller, mark: str) -> None:
    """Two batches; each is promised when it is acknowledged, whatever becomes of the stream."""
    texts = {each: record_text(each) for each in (mark, f"{mark}b")}
    requests = [
        ingest_pb.StreamRecordsRequest(request_id=each, records=[Record(source=SOURCE, record_id=each, text=text)])
        for each, text in texts.items()
    ]
    for each, text in texts.items():
        caller.ledgers.records.sent(each, text)
    acknowledged = []
    with rpc_errors():
        stream = IngestServiceStub(caller.channel).StreamRecords
        for answer in stream(iter(requests), metadata=caller.metadata, timeout=TIMEOUT_S):
            caller.ledgers.records.accepted(answer.request_id, texts[answer.request_id])
            acknowledged.append(answer.request_id)
    assert acknowledged == list(texts)


def _clean(caller: Caller, mark: str) -> None:
    request = CleanTextRequest(text=f"<p>write to  a@b.org {mark}</p>", dataset=DATASET)
    answer = caller.ask(CleaningServiceStub(caller.channel).CleanText, request)
    assert answer.text == f"write to [EMAIL] {mark}", answer


def _feedback(caller: Caller, mark: str) -> None:
    correction = f"better {mark}"
    request = pipeline_pb.RecordFeedbackRequest(
        request_id=mark, answer=caller.judged(mark), rating=0.5, author=mark, correction=correction
    )
    caller.ledgers.feedback.sent(mark, correction)
    caller.ask(PipelineServiceStub(caller.channel).RecordFeedback, request)
    caller.ledgers.feedback.accepted(mark, correction)


def _feedback_batch(caller: Caller, mark: str) -> None:
    answer, corrections = caller.judged(mark), {each: f"better {each}" for each in (mark, f"{mark}b")}
    request = pipeline_pb.BatchRecordFeedbackRequest(request_id=mark)
    for each, correction in corrections.items():
        request.judgements.add(request_id=each, answer=answer, rating=0.5, author=mark, correction=correction)
        caller.ledgers.feedback.sent(each, correction)
    caller.ask(PipelineServiceStub(caller.channel).BatchRecordFeedback, request)
    for each, correction in corrections.items():
        caller.ledgers.feedback.accepted(each, correction)


GRPC_DOORS: Mapping[str, Door] = {
    "grpc predict": Door(_predict, (f"{_INFERENCE}/Predict",)),
    "grpc embed": Door(_embed, (f"{_INFERENCE}/Embed",)),
    "grpc generate": Door(_generate, (f"{_INFERENCE}/Generate",)),
    "grpc stream generate": Door(_stream_generate, (f"{_INFERENCE}/StreamGenerate",)),
    "grpc v2": Door(_v2, (f"{_V2}/ModelInfer",)),
    "grpc v2 stream": Door(_v2_stream, (f"{_V2}/ModelStreamInfer",)),
    "grpc ingest": Door(_ingest, (f"{_INGEST}/IngestRecords",)),
    "grpc stream records": Door(_stream_records, (f"{_INGEST}/StreamRecords",)),
    "grpc clean": Door(_clean, ("/tidemill.cleaning.v1.CleaningService/CleanText",)),
    "grpc feedback": Door(_feedback, (f"{_PIPELINE}/RecordFeedback",)),
    "grpc feedback batch": Door(_feedback_batch, (f"{_PIPELINE}/BatchRecordFeedback",)),
    "grpc look-ups": Door(
        _look_up,
        (
            *(
                f"{_INFERENCE}/{method}"
                for method in ("GetModel", "ListModels", "ListModelVersions", "GetRoute", "ListRoutes")
            ),
            *(f"{_V2}/{method}" for method in ("ServerMetadata", *_MODEL_LOOK_UPS)),
        ),
    ),
}
