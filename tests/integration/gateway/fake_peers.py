"""The services behind the gateway, played by real gRPC servers that implement the contracts with canned answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tidemill.inference.v1 import inference_service_pb2 as inference_pb2
from tidemill.inference.v1 import model_pb2
from tidemill.inference.v1.inference_service_pb2_grpc import (
    InferenceServiceServicer,
    add_InferenceServiceServicer_to_server,
)
from tidemill.ingest.v1 import ingest_service_pb2 as ingest_pb2
from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceServicer, add_IngestServiceServicer_to_server
from tidemill.pipeline.v1 import cycle_pb2
from tidemill.pipeline.v1 import pipeline_service_pb2 as pipeline_pb2
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import (
    PipelineServiceServicer,
    add_PipelineServiceServicer_to_server,
)
from tidemill.telemetry.v1 import telemetry_service_pb2 as telemetry_pb2
from tidemill.telemetry.v1.telemetry_service_pb2_grpc import (
    TelemetryServiceServicer,
    add_TelemetryServiceServicer_to_server,
)
from tritonclient.grpc import service_pb2 as v2
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from services.kit.errors import InvalidArgumentError, NotFoundError
from services.kit.grpc.server import bind, create_server, finish_server
from services.kit.telemetry.metrics import RequestMetrics

ANSWER = "answers/01jtest"
VERSION = "models/headlines/versions/3"
WORDS = ("Rates ", "rise ", "again")


def model() -> model_pb2.Model:
    """The one published model."""
    found = model_pb2.Model(name="models/headlines", prompt_template="Write a headline.\n\n{text}")
    found.create_time.FromSeconds(1_700_000_000)
    found.serving.name = VERSION
    found.serving.precision = "int8"
    found.serving.task = "generation"
    return found


@dataclass
class ReceivedCalls:
    """What the fakes were asked."""

    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    remaining_s: list[float | None] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, request: Any, context: Any) -> None:
        """Keeps one call."""
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.remaining_s.append(context.time_remaining())


class FakeInference(InferenceServiceServicer):
    """Answers for `headlines`; the text decides how: `wait` hangs, `queue` hangs before
    the first piece, `fail` fails, `break` fails in the middle."""

    def __init__(self, seen: ReceivedCalls) -> None:
        self._seen = seen

    def _check(self, name: str) -> None:
        if name != "models/headlines":
            raise NotFoundError(f"There is no model {name}.", reason="MODEL_NOT_FOUND")

    @staticmethod
    def _asked(request: Any) -> str:
        if request.WhichOneof("input") == "text":
            return str(request.text)
        return str(request.conversation.messages[-1].content)

    async def Generate(self, request: Any, context: Any) -> inference_pb2.GenerateResponse:  # noqa: N802
        self._seen.note(request, context)
        self._check(request.model)
        if self._asked(request) == "fail":
            raise RuntimeError("the runtime failed")
        try:
            if self._asked(request) == "wait":
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            self._seen.cancelled.set()
            raise
        return inference_pb2.GenerateResponse(
            answer=ANSWER,
            text="".join(WORDS),
            finish_reason=model_pb2.FINISH_REASON_STOP,
            usage=model_pb2.Usage(prompt_tokens=7, completion_tokens=3),
            model_version=VERSION,
        )

    async def StreamGenerate(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[inference_pb2.StreamGenerateResponse]:
        self._seen.note(request, context)
        self._check(request.model)
        asked = self._asked(request)
        try:
            if asked == "queue":
                await asyncio.sleep(60)
            for word in WORDS:
                yield inference_pb2.StreamGenerateResponse(answer=ANSWER, text_delta=word, model_version=VERSION)
                if asked == "break":
                    raise RuntimeError("the runtime broke")
                if asked == "wait":
                    await asyncio.sleep(60)
        except (asyncio.CancelledError, GeneratorExit):
            self._seen.cancelled.set()
            raise
        yield inference_pb2.StreamGenerateResponse(
            answer=ANSWER,
            finish_reason=model_pb2.FINISH_REASON_LENGTH,
            usage=model_pb2.Usage(prompt_tokens=7, completion_tokens=3),
            model_version=VERSION,
        )

    async def Predict(self, request: Any, context: Any) -> inference_pb2.PredictResponse:  # noqa: N802
        self._seen.note(request, context)
        context.set_trailing_metadata((("x-cache", "hit"),))
        return inference_pb2.PredictResponse(
            predictions=[
                inference_pb2.Prediction(
                    answer=ANSWER, label="positive", score=0.9, scores={"positive": 0.9, "negative": 0.1}
                )
                for _ in request.texts
            ],
            model_version="models/reviews/versions/1",
        )

    async def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:  # noqa: N802
        unserved = model_pb2.Model(name="models/unserved")
        if not request.page_token:
            return inference_pb2.ListModelsResponse(models=[model()], next_page_token="2")
        return inference_pb2.ListModelsResponse(models=[unserved])

    async def GetModel(self, request: Any, context: Any) -> inference_pb2.GetModelResponse:  # noqa: N802
        self._check(request.name)
        return inference_pb2.GetModelResponse(model=model())


class FakeV2(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A model `echo` that gives every input back as `OUT_<name>`."""

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return v2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return v2.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.version and not request.version.isdigit():  # as Triton
            raise InvalidArgumentError(f"failed to get model version from specified version string '{request.version}'")
        return v2.ModelReadyResponse(ready=request.name == "echo")

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        names = [request.name] if request.name else ["echo", "writer"]
        return v2.ModelStatisticsResponse(model_stats=[v2.ModelStatistics(name=name) for name in names])

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return v2.ServerMetadataResponse(name="tidemill", version="1")

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name != "echo":
            raise NotFoundError(f"There is no model {request.name}.")
        shape = v2.ModelMetadataResponse.TensorMetadata(name="TEXT", datatype="BYTES", shape=[-1])
        return v2.ModelMetadataResponse(name="echo", versions=["1"], platform="python", inputs=[shape], outputs=[shape])

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = v2.ModelConfigResponse()
        response.config.name = request.name
        return response

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model_name == "writer":
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "a decoupled model")
        if request.model_name != "echo":
            raise NotFoundError(f"There is no model {request.model_name}.")
        response = v2.ModelInferResponse(model_name="echo", model_version="1", id=request.id)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            response.outputs.add(name=f"OUT_{tensor.name}", datatype=tensor.datatype, shape=tensor.shape)
            response.raw_output_contents.append(raw)
        return response

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in requests:
            yield v2.ModelStreamInferResponse(infer_response=await self.ModelInfer(request, context))


class FakeIngest(IngestServiceServicer):
    """Accepts everything."""

    def __init__(self, seen: ReceivedCalls) -> None:
        self._seen = seen

    async def IngestRecords(self, request: Any, context: Any) -> ingest_pb2.IngestRecordsResponse:  # noqa: N802
        self._seen.note(request, context)
        ids = [record.record_id or f"rec_{index}" for index, record in enumerate(request.records)]
        return ingest_pb2.IngestRecordsResponse(record_ids=ids)

    async def StreamRecords(  # noqa: N802
        self, requests: Any, context: Any
    ) -> AsyncIterator[ingest_pb2.StreamRecordsResponse]:
        async for request in requests:
            self._seen.note(request, context)
            yield ingest_pb2.StreamRecordsResponse(request_id=request.request_id, record_ids=["a"])


class FakePipeline(PipelineServiceServicer):
    """Plays back prepared states of one cycle."""

    def __init__(self, seen: ReceivedCalls) -> None:
        self._seen = seen
        self.states: list[cycle_pb2.Cycle] = []
        self.pause_s = 0.0

    async def CreateCycle(self, request: Any, context: Any) -> pipeline_pb2.CreateCycleResponse:  # noqa: N802
        self._seen.note(request, context)
        return pipeline_pb2.CreateCycleResponse(cycle=self.states[0])

    async def GetCycle(self, request: Any, context: Any) -> pipeline_pb2.GetCycleResponse:  # noqa: N802
        return pipeline_pb2.GetCycleResponse(cycle=self.states[-1])

    async def ListCycles(self, request: Any, context: Any) -> pipeline_pb2.ListCyclesResponse:  # noqa: N802
        return pipeline_pb2.ListCyclesResponse(cycles=self.states[-1:])

    async def CancelCycle(self, request: Any, context: Any) -> pipeline_pb2.CancelCycleResponse:  # noqa: N802
        self._seen.note(request, context)
        return pipeline_pb2.CancelCycleResponse(cycle=self.states[-1])

    async def WatchCycle(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[pipeline_pb2.WatchCycleResponse]:
        for state in self.states:
            yield pipeline_pb2.WatchCycleResponse(cycle=state)
            await asyncio.sleep(self.pause_s)

    async def RecordFeedback(self, request: Any, context: Any) -> pipeline_pb2.RecordFeedbackResponse:  # noqa: N802
        self._seen.note(request, context)
        return pipeline_pb2.RecordFeedbackResponse(
            feedback=pipeline_pb2.Feedback(
                name="feedback/f1",
                answer=request.answer,
                rating=request.rating,
                correction=request.correction,
                model_version=VERSION if request.answer == ANSWER else "",
            )
        )


class FakeTelemetry(TelemetryServiceServicer):
    """Holds some lines, newest first, and one trace."""

    def __init__(self) -> None:
        self.away = False
        self.logs: list[telemetry_pb2.LogRecord] = []
        self.spans: list[telemetry_pb2.Span] = []

    async def SearchLogs(self, request: Any, context: Any) -> telemetry_pb2.SearchLogsResponse:  # noqa: N802
        if self.away:  # as a port where no one listens
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Connection refused")
        since = request.start_time.ToNanoseconds()
        found = [record for record in self.logs if record.time.ToNanoseconds() >= since]
        return telemetry_pb2.SearchLogsResponse(records=found[: request.page_size], total=len(found))

    async def GetTrace(self, request: Any, context: Any) -> telemetry_pb2.GetTraceResponse:  # noqa: N802
        if not self.spans:
            raise NotFoundError(f"There is no trace {request.trace_id}.")
        return telemetry_pb2.GetTraceResponse(spans=self.spans, logs=self.logs)


class FakePeers:
    """All services in one server of this event loop."""

    def __init__(self) -> None:
        self.seen = ReceivedCalls()
        self.pipeline = FakePipeline(self.seen)  # type: ignore[abstract]
        self.telemetry = FakeTelemetry()  # type: ignore[abstract]
        self.address = ""
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serves on a free port."""
        server = create_server(RequestMetrics("fakes"), traced=False)
        services = self._register(server)
        grpc_server = finish_server(server, services)
        self.address = f"127.0.0.1:{bind(server, '127.0.0.1:0')}"
        await server.start()
        await grpc_server.set_serving(True)
        self._server = server

    def _register(self, server: grpc.aio.Server) -> Sequence[str]:
        add_InferenceServiceServicer_to_server(FakeInference(self.seen), server)  # type: ignore[abstract]
        add_GRPCInferenceServiceServicer_to_server(FakeV2(), server)
        add_IngestServiceServicer_to_server(FakeIngest(self.seen), server)  # type: ignore[abstract]
        add_PipelineServiceServicer_to_server(self.pipeline, server)
        add_TelemetryServiceServicer_to_server(self.telemetry, server)
        return ["tidemill.inference.v1.InferenceService"]

    async def stop(self) -> None:
        """Ends at once."""
        if self._server is not None:
            await self._server.stop(None)


def floats(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A tensor of FP32."""
    return np.array(values, dtype=np.float32)
