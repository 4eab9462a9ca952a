"""The services behind the gateway, played by real gRPC servers that implement the contracts with canned answers."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import add_CleaningServiceServicer_to_server
from tidemill.inference.v1 import inference_service_pb2 as inference_pb2
from tidemill.inference.v1 import model_pb2, route_pb2
from tidemill.inference.v1.inference_service_pb2_grpc import (
    InferenceServiceServicer,
    add_InferenceServiceServicer_to_server,
)
from tidemill.ingest.v1 import ingest_service_pb2 as ingest_pb2
from tidemill.ingest.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server
from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceServicer, add_IngestServiceServicer_to_server
from tidemill.ingest.v1.source_service_pb2_grpc import SourceServiceServicer, add_SourceServiceServicer_to_server
from tidemill.pipeline.v1 import cycle_pb2, rollout_pb2
from tidemill.pipeline.v1 import exclusion_service_pb2 as exclusion_pb2
from tidemill.pipeline.v1 import pipeline_service_pb2 as pipeline_pb2
from tidemill.pipeline.v1 import rollout_service_pb2 as rollout_service_pb2
from tidemill.pipeline.v1.exclusion_service_pb2_grpc import (
    ExclusionServiceServicer,
    add_ExclusionServiceServicer_to_server,
)
from tidemill.pipeline.v1.judge_service_pb2_grpc import add_JudgeServiceServicer_to_server
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import (
    PipelineServiceServicer,
    add_PipelineServiceServicer_to_server,
)
from tidemill.pipeline.v1.review_service_pb2_grpc import add_ReviewServiceServicer_to_server
from tidemill.pipeline.v1.rollout_service_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from tidemill.pipeline.v1.trigger_service_pb2_grpc import add_TriggerServiceServicer_to_server
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

from services.ingest.app.dead_letters import DeadLetters
from services.ingest.entrypoints.dead_letter_servicer import DeadLetterServicer
from services.kit.clock import SystemClock
from services.kit.engine import QUEUE_FULL
from services.kit.errors import NotFoundError, TidemillError
from services.kit.grpc.server import bind, create_server, finish_server
from services.kit.telemetry.metrics import RequestMetrics
from services.serving.adapters.triton_tensors import GONE, REQUEST
from tests.dead_letters import MemoryLetters, MemoryMarks
from tests.integration.gateway.console_peers import FakeCleaning, FakeJudges, FakeReviews, FakeTriggers, published
from tests.integration.gateway.console_peers import answer as captured

ANSWER = "answers/01jtest"
VERSION = "models/headlines/versions/3"
WORDS = ("Rates ", "rise ", "again")
FULL_S = 12
"""Seconds after which a queue that is full has room again."""
# The tensors of one value that have the name of the contract's field.
_OPTIONS = {field.name for field in model_pb2.SamplingParams.DESCRIPTOR.fields} - {"stop"}


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
    """Set when a model was asked to stop."""
    cancelled_calls: int = 0
    """Calls to Triton that were cancelled, which could crash it."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """Lets answers to `hold` continue."""

    def note(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.remaining_s.append(context.time_remaining())

    def note_asked(self, asked: Any, request: Any) -> None:
        """Keeps what Triton was asked, with the trace that it was given."""
        self.requests.append(asked)
        self.metadata.append({name: value.string_param for name, value in request.parameters.items()})


def canaries() -> route_pb2.Route:
    """The route of `reviews` as `GetRoute` shows it: 3 serves, 4 is a canary, 5 a shadow, and `stable` is 3."""
    found = route_pb2.Route(model="models/reviews", etag="7", aliases={"stable": 3})
    for number, role, weight in (
        (3, route_pb2.VERSION_ROLE_SERVING, 60),
        (4, route_pb2.VERSION_ROLE_CANARY, 20),
        (5, route_pb2.VERSION_ROLE_SHADOW, 0),
    ):
        found.versions.add(name=f"models/reviews/versions/{number}", role=role, weight=weight, precision="int8")
    return found


def routes() -> list[route_pb2.Route]:
    """What inference sends to the gateway: a model that writes, two that classify, and one that does not answer."""
    writer = route_pb2.RoutedVersion(
        name=VERSION, task="generation", precision="int8", prompt_template="Write a headline.\n\n{text}"
    )
    headlines = route_pb2.Route(model="models/headlines", versions=[writer], serving=VERSION, generation=1)
    headlines.create_time.FromSeconds(1_700_000_000)
    found = [headlines, route_pb2.Route(model="models/unserved", versions=[writer])]
    for name in ("reviews", "m"):
        version = route_pb2.RoutedVersion(
            name=f"models/{name}/versions/1",
            task="text_classification",
            labels=["positive", "negative"],
            embedding_size=4 if name == "reviews" else 0,
        )
        found.append(route_pb2.Route(model=f"models/{name}", versions=[version], serving=version.name, generation=1))
    for name in ("echo", "writer"):
        version = route_pb2.RoutedVersion(name=f"models/{name}/versions/1", task="text_classification")
        found.append(route_pb2.Route(model=f"models/{name}", versions=[version], serving=version.name, generation=1))
    return found


def _plain(name: str) -> str:
    """The model in what Triton calls a version, such as `echo.1`."""
    model, dot, _ = name.rpartition(".")
    assert dot, name
    return model


class FakeInference(InferenceServiceServicer):
    """The control plane: it knows the models and which versions answer."""

    def __init__(self, seen: ReceivedCalls) -> None:
        self._seen = seen

    async def WatchRoutes(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[inference_pb2.WatchRoutesResponse]:
        yield inference_pb2.WatchRoutesResponse(revision=1, snapshot=True, routes=routes())
        await asyncio.sleep(3600)

    async def GetRoute(self, request: Any, context: Any) -> inference_pb2.GetRouteResponse:  # noqa: N802
        return inference_pb2.GetRouteResponse(route=canaries())

    async def ListRoutes(self, request: Any, context: Any) -> inference_pb2.ListRoutesResponse:  # noqa: N802
        return inference_pb2.ListRoutesResponse(routes=[canaries(), routes()[0]])

    async def SetRoute(self, request: Any, context: Any) -> inference_pb2.SetRouteResponse:  # noqa: N802
        self._seen.note(request, context)
        versions = [
            route_pb2.RoutedVersion(name=f"{request.model}/versions/{e.version}", role=e.role, weight=e.weight)
            for e in request.entries
        ]
        route = route_pb2.Route(model=request.model, versions=versions, aliases=request.aliases, etag="8")
        return inference_pb2.SetRouteResponse(route=route)

    async def PromoteVersion(self, request: Any, context: Any) -> inference_pb2.PromoteVersionResponse:  # noqa: N802
        self._seen.note(request, context)
        return inference_pb2.PromoteVersionResponse(route=canaries())

    async def SetCascade(self, request: Any, context: Any) -> inference_pb2.SetCascadeResponse:  # noqa: N802
        self._seen.note(request, context)
        found = canaries()
        if request.HasField("cascade"):
            found.cascade.CopyFrom(request.cascade)
        return inference_pb2.SetCascadeResponse(route=found)

    async def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:  # noqa: N802
        self._seen.note(request, context)
        context.set_trailing_metadata((("x-cache", "hit"),))
        return inference_pb2.ListModelsResponse(models=[model()])

    async def ListModelVersions(self, request: Any, context: Any) -> inference_pb2.ListModelVersionsResponse:  # noqa: N802
        found = [published()] if request.model == "models/headlines" else []
        return inference_pb2.ListModelVersionsResponse(model_versions=found)

    async def GetModel(self, request: Any, context: Any) -> inference_pb2.GetModelResponse:  # noqa: N802
        if request.name == "models/fail":
            raise RuntimeError("the service failed")
        if request.name == "models/reviews":
            found = model_pb2.Model(name=request.name, labels=["positive", "negative"])
            return inference_pb2.GetModelResponse(model=found)
        return inference_pb2.GetModelResponse(model=model())


def _asked(request: Any) -> Any:
    """The call of the contract that a request to Triton was made of."""
    tensors = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        values: list[Any] = []
        if tensor.datatype == "BYTES":
            while raw:
                size = int.from_bytes(raw[:4], "little")
                values.append(raw[4 : 4 + size].decode())
                raw = raw[4 + size :]
        else:
            form = {"FP32": "<f4", "INT32": "<i4", "INT64": "<i8", "BOOL": "?"}[tensor.datatype]
            values = [round(value, 6) for value in np.frombuffer(raw, form).tolist()]
        tensors[tensor.name] = values
    name = f"models/{_plain(request.model_name)}"
    if _plain(request.model_name) in ("reviews", "m"):
        return inference_pb2.PredictRequest(model=name, texts=tensors["text"])
    asked = inference_pb2.GenerateRequest(model=name)
    if "text" in tensors:
        asked.text = tensors["text"][0]
    else:
        for message in json.loads(tensors["messages_json"][0]):
            calls = [
                model_pb2.ToolCall(
                    id=call["id"],
                    name=call["function"]["name"],
                    arguments=json.dumps(call["function"]["arguments"]),
                )
                for call in message.pop("tool_calls", ())
            ]
            asked.conversation.messages.add(**message, tool_calls=calls)
    for option in _OPTIONS:
        if option in tensors:
            setattr(asked.sampling, option, tensors[option][0])
    asked.sampling.stop.extend(tensors.get("stop", ()))
    return asked


def _text(value: str) -> bytes:
    return len(value.encode()).to_bytes(4, "little") + value.encode()


def _piece(text: str, finish: str = "", *, logprobs: bool = False) -> Any:
    response = v2.ModelInferResponse(model_name="headlines", model_version="3")
    contents = {
        "text_delta": _text(text),
        "finish_reason": _text(finish),
        "prompt_tokens": (7).to_bytes(4, "little"),
        "completion_tokens": (3).to_bytes(4, "little"),
    }
    if logprobs and text:
        contents |= {"tokens": _text(text), "logprobs": np.float32(-0.5).tobytes()}
    for name, raw in contents.items():
        response.outputs.add(name=name)
        response.raw_output_contents.append(raw)
    return v2.ModelStreamInferResponse(infer_response=response)


class FakeV2(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Triton: `echo` gives every input back as `OUT_<name>`, `reviews` and `m` find all positive, `headlines` writes.

    The text decides how it writes: `wait` hangs, `queue` hangs before the first piece, `fail` fails, `break` fails in
    the middle, `hold` hangs after the first piece until it is released, `full` finds the queue full. `reviews` and `m`
    hang on `wait`, too.
    """

    def __init__(self, seen: ReceivedCalls) -> None:
        self._seen = seen
        self._departed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return v2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return v2.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return v2.ModelReadyResponse(ready=_plain(request.name) == "echo")

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        return v2.ModelStatisticsResponse(model_stats=[v2.ModelStatistics(name=request.name, version="1")])

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return v2.ServerMetadataResponse(name="tidemill", version="1")

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        if _plain(request.name) != "echo":
            raise NotFoundError(f"There is no model {request.name}.")
        shape = v2.ModelMetadataResponse.TensorMetadata(name="TEXT", datatype="BYTES", shape=[-1])
        return v2.ModelMetadataResponse(name="echo", versions=["1"], platform="python", inputs=[shape], outputs=[shape])

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = v2.ModelConfigResponse()
        response.config.name = request.name
        return response

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if _plain(request.model_name) == "writer":
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "a decoupled model")
        if _plain(request.model_name) in ("reviews", "m"):
            return await self._classify(request)
        if _plain(request.model_name) != "echo":
            raise NotFoundError(f"There is no model {request.model_name}.")
        response = v2.ModelInferResponse(model_name="echo", model_version="1", id=request.id)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            response.outputs.add(name=f"OUT_{tensor.name}", datatype=tensor.datatype, shape=tensor.shape)
            response.raw_output_contents.append(raw)
        return response

    async def _classify(self, request: Any) -> Any:
        asked = _asked(request)
        self._seen.note_asked(asked, request)
        response = v2.ModelInferResponse(model_name=request.model_name, model_version="1")
        texts = asked.texts
        if "wait" in texts:
            await asyncio.sleep(60)
        found: dict[str, tuple[str, Any]] = {
            "scores": ("FP32", np.array([[0.9, 0.1]] * len(texts), dtype="<f4")),
            # A text that begins with `long` has two tokens more than the model reads.
            "prompt_tokens": ("INT32", np.array([[len(text)] for text in texts], dtype="<i4")),
            "truncated_tokens": ("INT32", np.array([[2 * text.startswith("long")] for text in texts], dtype="<i4")),
            "embedding": ("FP32", np.array([[0.1, 0.7, 0.1, 0.7]] * len(texts), dtype="<f4")),
        }
        for output in request.outputs:
            kind, values = found[output.name]
            response.outputs.add(name=output.name, datatype=kind, shape=values.shape)
            response.raw_output_contents.append(values.tobytes())
        return response

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in requests:
            if _plain(request.model_name) == "headlines":
                async for piece in self._write(request, context):
                    yield piece
            else:
                yield v2.ModelStreamInferResponse(infer_response=await self.ModelInfer(request, context))

    async def _left(self, departed: asyncio.Event) -> bool:
        """Waits for a minute; whether the caller's departure was reported meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(60):
                await departed.wait()
            self._seen.cancelled.set()
        return departed.is_set()

    async def _write(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if GONE in request.parameters:
            self._departed[request.parameters[GONE].string_param].set()
            return
        departed = self._departed[request.parameters[REQUEST].string_param]
        if not request.inputs:  # whether the model lives
            yield v2.ModelStreamInferResponse(error_message="Give exactly one of `text` and `messages_json`.")
            return
        asked = _asked(request)
        self._seen.note_asked(asked, request)
        text = asked.text or asked.conversation.messages[-1].content
        try:
            if text == "queue" and await self._left(departed):
                return
            if text == "full":
                message = f"256 {QUEUE_FULL} {FULL_S} s."
                # Triton would end the stream by a status for who asks for it, and could crash.
                assert "triton_grpc_error" not in dict(context.invocation_metadata())
                yield v2.ModelStreamInferResponse(error_message=message)
                return
            if text == "fail":
                yield v2.ModelStreamInferResponse(error_message="the runtime failed")
                return
            for word in WORDS:
                yield _piece(word, logprobs=asked.sampling.logprobs)
                if text == "break":
                    yield v2.ModelStreamInferResponse(error_message="the runtime failed unexpectedly")
                    return
                if text == "wait" and await self._left(departed):
                    return
                if text == "hold":
                    await self._seen.released.wait()
        except (asyncio.CancelledError, GeneratorExit):
            # It can crash Triton.
            self._seen.cancelled_calls += 1
            raise
        yield _piece("", "stop" if asked.sampling.max_tokens else "length")


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


ROLLOUT, OLDER = f"rollouts/{'b' * 26}", f"rollouts/{'a' * 26}"


def rollout() -> rollout_pb2.ModelRollout:
    """A roll-out of `reviews` in its comparison."""
    steps = [
        rollout_pb2.RolloutStep(kind=rollout_pb2.RolloutStep.KIND_SHADOW, reason="It gave 200 answers."),
        rollout_pb2.RolloutStep(kind=rollout_pb2.RolloutStep.KIND_AB, share=0.5),
    ]
    arms = [
        rollout_pb2.RolloutArm(model_version="models/reviews/versions/3", share=0.5, answers=310, users=300),
        rollout_pb2.RolloutArm(
            model_version="models/reviews/versions/4", share=0.5, answers=290, users=280, judged_users=250, mean=0.75
        ),
    ]
    return rollout_pb2.ModelRollout(
        name=ROLLOUT,
        model="models/reviews",
        candidate="models/reviews/versions/4",
        champion="models/reviews/versions/3",
        state=rollout_pb2.ModelRollout.STATE_RUNNING,
        steps=steps,
        step=1,
        arms=arms,
        reason="It gave 200 answers.",
        difference=0.1,
        lower=-0.05,
        upper=0.25,
    )


class FakeRollouts(RolloutServiceServicer):
    """One roll-out and its trail."""

    def __init__(self, seen: ReceivedCalls) -> None:
        self._seen = seen

    async def GetRollout(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        return rollout_service_pb2.GetRolloutResponse(rollout=rollout())

    async def ListRollouts(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = [rollout()] if request.model in ("", "models/reviews") else []
        # Two pages, of which the second has an older one.
        token = "" if request.page_token or not found else "1"
        if request.page_token:
            found[0].name = OLDER
        return rollout_service_pb2.ListRolloutsResponse(rollouts=found, next_page_token=token)

    async def RollBackRollout(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        found = rollout()
        found.state, found.reason = rollout_pb2.ModelRollout.STATE_ROLLED_BACK, request.reason
        return rollout_service_pb2.RollBackRolloutResponse(rollout=found)

    async def FreezeRollout(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        found = rollout()
        found.frozen = True
        return rollout_service_pb2.FreezeRolloutResponse(rollout=found)

    async def ListAuditEntries(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        number = int(request.page_token or 0)
        entry = rollout_pb2.AuditEntry(
            name=f"auditEntries/{number}", actor="key:k1", action="rollout.freeze", resource=ROLLOUT, reason="a fair"
        )
        token = "" if number else "1"
        return rollout_service_pb2.ListAuditEntriesResponse(entries=[entry], next_page_token=token)


class FakeSources(SourceServiceServicer):
    """Ingest's declared sources, of which nothing is called: tests/integration/ingest has them."""


class FakeExclusions(ExclusionServiceServicer):
    """One erasure, which is complete when it is listed."""

    def __init__(self, seen: ReceivedCalls) -> None:
        self._seen = seen
        learnt = exclusion_pb2.AffectedCycle(
            cycle="pipelines/headlines/cycles/c1", dataset_version="datasets/d/versions/1", run="runs/r1", records=2
        )
        self._erasure = exclusion_pb2.Exclusion(
            name="exclusions/01jerasure",
            kind=exclusion_pb2.Exclusion.KIND_ERASURE,
            person="p-00000000000d05a0",
            affected=[learnt],
            removed={"answers": 1, "feedback": 2},
            ordered_pipelines=["pipelines/headlines"],
            rewritten_versions=["datasets/d/versions/1"],
        )
        self._erasure.create_time.FromSeconds(1_790_000_000)

    async def EraseUser(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        return exclusion_pb2.EraseUserResponse(exclusion=self._erasure)

    async def ListExclusions(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = exclusion_pb2.Exclusion()
        found.CopyFrom(self._erasure)
        found.complete_time.FromSeconds(1_790_000_600)
        return exclusion_pb2.ListExclusionsResponse(exclusions=[found])


class FakePipeline(PipelineServiceServicer):
    """Plays back prepared states of one cycle."""

    def __init__(self, seen: ReceivedCalls) -> None:
        self._seen = seen
        self.states: list[cycle_pb2.Cycle] = []
        self.pause_s = 0.0

    async def WatchCapture(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[pipeline_pb2.WatchCaptureResponse]:
        yield pipeline_pb2.WatchCaptureResponse()
        await asyncio.sleep(3600)

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

    async def GetCapturedAnswer(self, request: Any, context: Any) -> pipeline_pb2.GetCapturedAnswerResponse:  # noqa: N802
        return pipeline_pb2.GetCapturedAnswerResponse(answer=captured())

    async def ListFeedback(self, request: Any, context: Any) -> pipeline_pb2.ListFeedbackResponse:  # noqa: N802
        given = pipeline_pb2.Feedback(answer="answers/01jwriter", rating=-1, correction="Better", author="ben")
        other = pipeline_pb2.Feedback(answer="answers/other", comment="of another answer")
        return pipeline_pb2.ListFeedbackResponse(feedback=[given, other])

    async def BatchRecordFeedback(self, request: Any, context: Any) -> pipeline_pb2.BatchRecordFeedbackResponse:  # noqa: N802
        self._seen.note(request, context)
        feedback = [pipeline_pb2.Feedback(name="feedback/f1", answer=item.answer) for item in request.judgements]
        return pipeline_pb2.BatchRecordFeedbackResponse(feedback=feedback)


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


class FakeBus:
    """Takes the events of served answers; see `services.kit.bus.port.EventPublisher`."""

    def __init__(self, *_: object, **__: object) -> None:
        self.events: list[Any] = []

    def publish(self, topic: object, events: Sequence[Any]) -> None:
        self.events += events

    def finish(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


class Refusing(grpc.aio.ServerInterceptor):
    """While `error` is set, every service answers with it; Triton does not."""

    def __init__(self) -> None:
        self.error: TidemillError | None = None

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """The call's handler, or one that refuses the call."""
        handler, error = await continuation(details), self.error
        if handler is None or error is None or not details.method.startswith("/tidemill."):
            return handler

        async def refuse(_requests: Any, _context: Any) -> AsyncIterator[Any]:
            raise error
            yield  # type: ignore[unreachable]  # makes it a stream

        return grpc.stream_stream_rpc_method_handler(refuse)


class FakePeers:
    """All services in one server of this event loop."""

    def __init__(self) -> None:
        self.refusing = Refusing()
        self.seen = ReceivedCalls()
        self.pipeline = FakePipeline(self.seen)  # type: ignore[abstract]
        self.triggers = FakeTriggers(self.seen)
        self.reviews = FakeReviews(self.seen)
        self.letters = MemoryLetters()
        self.telemetry = FakeTelemetry()  # type: ignore[abstract]
        self.address = ""
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serves on a free port."""
        server = create_server(RequestMetrics("fakes"), traced=False, extra=[self.refusing])
        services = self._register(server)
        grpc_server = finish_server(server, services)
        self.address = f"127.0.0.1:{bind(server, '127.0.0.1:0')}"
        await server.start()
        await grpc_server.set_serving(True)
        self._server = server

    def _register(self, server: grpc.aio.Server) -> Sequence[str]:
        add_InferenceServiceServicer_to_server(FakeInference(self.seen), server)  # type: ignore[abstract]
        add_GRPCInferenceServiceServicer_to_server(FakeV2(self.seen), server)
        add_CleaningServiceServicer_to_server(FakeCleaning(self.seen), server)  # type: ignore[abstract]
        add_IngestServiceServicer_to_server(FakeIngest(self.seen), server)  # type: ignore[abstract]
        add_SourceServiceServicer_to_server(FakeSources(), server)  # type: ignore[abstract]
        letters = DeadLetterServicer(DeadLetters(self.letters, MemoryMarks(), SystemClock()))
        add_DeadLetterServiceServicer_to_server(letters, server)
        add_PipelineServiceServicer_to_server(self.pipeline, server)
        # What is not played here is refused before anything is called.
        add_TriggerServiceServicer_to_server(self.triggers, server)
        add_RolloutServiceServicer_to_server(FakeRollouts(self.seen), server)  # type: ignore[abstract]
        add_ReviewServiceServicer_to_server(self.reviews, server)
        add_JudgeServiceServicer_to_server(FakeJudges(), server)
        add_ExclusionServiceServicer_to_server(FakeExclusions(self.seen), server)  # type: ignore[abstract]
        add_TelemetryServiceServicer_to_server(self.telemetry, server)
        return ["tidemill.inference.v1.InferenceService"]

    async def stop(self) -> None:
        """Ends at once."""
        if self._server is not None:
            await self._server.stop(None)


def floats(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A tensor of FP32."""
    return np.array(values, dtype=np.float32)
