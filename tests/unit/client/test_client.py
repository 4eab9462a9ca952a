"""The installable client, out of its wheel, against servers that fail on purpose."""

from __future__ import annotations

import inspect
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from tidemill.inference.v1 import inference_service_pb2 as inference
from tidemill.inference.v1 import inference_service_pb2_grpc as inference_grpc
from tidemill.inference.v1 import model_pb2
from tidemill.pipeline.v1 import pipeline_service_pb2 as pipeline
from tidemill.pipeline.v1 import pipeline_service_pb2_grpc as pipeline_grpc

from services.kit.errors import (
    FieldViolation,
    InvalidArgumentError,
    ResourceExhaustedError,
    TidemillError,
    UnavailableError,
)
from services.kit.grpc.errors import to_status
from tests.client_wheel import build_wheel, imported


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def package(wheel: Path) -> Iterator[ModuleType]:
    with imported(wheel) as module:
        yield module


class Mesh:
    """Answers like a gateway, after the failures that a test prepared."""

    def __init__(self) -> None:
        self.failures: list[TidemillError] = []
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.breaks_after = 99

    def take(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.failures:
            error = self.failures.pop(0)
            status = to_status(error)
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(grpc.StatusCode[error.code], error.message)


class _Inference(inference_grpc.InferenceServiceServicer):
    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._mesh.take(request, context)
        found = [
            inference.Prediction(
                answer=f"answers/{text}",
                label="good",
                score=0.75,
                scores={"good": 0.75, "bad": 0.25},
                spans=[inference.Span(start=0, end=1, label="X", score=0.5)],
            )
            for text in request.texts
        ]
        return inference.PredictResponse(predictions=found, model_version="models/reviews/versions/2")

    def Embed(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._mesh.take(request, context)
        found = [inference.Embedding(values=[0.6, 0.8], prompt_tokens=3, truncated_tokens=1) for _ in request.texts]
        return inference.EmbedResponse(embeddings=found, model_version="models/reviews/versions/2")

    def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._mesh.take(request, context)
        return inference.GenerateResponse(
            answer="answers/1",
            text="A headline",
            finish_reason=model_pb2.FINISH_REASON_LENGTH,
            usage=model_pb2.Usage(prompt_tokens=7, completion_tokens=2, truncated_tokens=1),
            model_version="models/headlines/versions/3",
        )

    def StreamGenerate(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self._mesh.take(request, context)
        for number, text in enumerate(("A", " head", "line")):
            if number == self._mesh.breaks_after:
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            yield inference.StreamGenerateResponse(answer="answers/1", text_delta=text)
        usage = model_pb2.Usage(prompt_tokens=7, completion_tokens=3, truncated_tokens=2)
        yield inference.StreamGenerateResponse(
            answer="answers/1", finish_reason=model_pb2.FINISH_REASON_STOP, usage=usage
        )


class _Pipeline(pipeline_grpc.PipelineServiceServicer):
    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def RecordFeedback(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._mesh.take(request, context)
        return pipeline.RecordFeedbackResponse()

    def BatchRecordFeedback(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._mesh.take(request, context)
        return pipeline.BatchRecordFeedbackResponse()


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


@pytest.fixture
def address(mesh: Mesh) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    inference_grpc.add_InferenceServiceServicer_to_server(_Inference(mesh), server)  # type: ignore[abstract]
    pipeline_grpc.add_PipelineServiceServicer_to_server(_Pipeline(mesh), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def client(package: ModuleType, address: str) -> Iterator[Any]:
    with package.Client(address, key="tm_key") as made:
        yield made


def test_texts_are_classified_in_order_in_as_many_requests_as_it_takes(client: Any, mesh: Mesh) -> None:
    found = client.predict("reviews", [str(number) for number in range(300)], user="u7")
    assert [len(request.texts) for request in mesh.requests] == [256, 44]
    assert [item.id for item in found] == [f"answers/{number}" for number in range(300)]
    assert (found[0].label, found[0].score, found[0].scores) == ("good", 0.75, {"good": 0.75, "bad": 0.25})
    assert [(span.start, span.end, span.label, span.score) for span in found[0].spans] == [(0, 1, "X", 0.5)]
    assert found.model_version == "models/reviews/versions/2"
    assert mesh.requests[0].model == "models/reviews"
    assert mesh.metadata[0]["authorization"] == "Bearer tm_key"
    assert {metadata["x-user-id"] for metadata in mesh.metadata} == {"u7"}
    # One version answers all of them, whoever the user is.
    mesh.metadata.clear()
    client.predict("reviews", [str(number) for number in range(300)])
    assert len(mesh.metadata) == 2
    assert len({metadata["x-user-id"] for metadata in mesh.metadata}) == 1
    client.predict("reviews", ["1"])
    assert "x-user-id" not in mesh.metadata[-1]


def test_texts_become_vectors(client: Any, mesh: Mesh) -> None:
    found = client.embed("reviews", ["a", "b"], dimensions=2, truncate=False)
    assert [list(item.values) for item in found] == [pytest.approx([0.6, 0.8])] * 2
    assert (found[0].prompt_tokens, found[0].truncated_tokens) == (3, 1)
    assert found.model_version == "models/reviews/versions/2"
    [request] = mesh.requests
    assert (request.model, list(request.texts), request.dimensions) == ("models/reviews", ["a", "b"], 2)
    assert request.HasField("truncate")
    assert not request.truncate


def test_an_answer_and_its_request(client: Any, mesh: Mesh, package: ModuleType) -> None:
    sampling = package.Sampling(max_tokens=5, temperature=0.5, seed=0, stop=("\n",))
    messages = [package.Message("system", "Be brief."), ("user", "Hello")]
    answer = client.generate("headlines", messages=messages, sampling=sampling)
    assert (answer.id, answer.text, answer.finish_reason) == ("answers/1", "A headline", "length")
    assert (answer.prompt_tokens, answer.completion_tokens) == (7, 2)
    assert (answer.truncated, answer.truncated_tokens) == (True, 1)
    assert answer.model_version == "models/headlines/versions/3"
    [request] = mesh.requests
    assert [(item.role, item.content) for item in request.conversation.messages] == [
        ("system", "Be brief."),
        ("user", "Hello"),
    ]
    assert (request.sampling.max_tokens, request.sampling.temperature, list(request.sampling.stop)) == (5, 0.5, ["\n"])
    assert request.sampling.HasField("seed")
    for arguments in ({}, {"text": "a", "messages": messages}):
        with pytest.raises(ValueError, match="either"):
            client.generate("headlines", **arguments)


def test_pieces_of_an_answer(client: Any) -> None:
    pieces = list(client.stream("headlines", text="article"))
    assert "".join(piece.text for piece in pieces) == "A headline"
    assert [piece.finish_reason for piece in pieces] == ["", "", "", "stop"]
    assert [piece.truncated for piece in pieces] == [False, False, False, True]
    last = pieces[-1]
    assert (last.prompt_tokens, last.completion_tokens, last.truncated_tokens) == (7, 3, 2)


def test_both_clients_offer_the_same(package: ModuleType) -> None:
    def offered(client: type) -> dict[str, Any]:
        methods = inspect.getmembers(client, inspect.isfunction)
        return {name: inspect.signature(method).parameters for name, method in methods if not name.startswith("_")}

    assert offered(package.Client) == offered(package.AsyncClient)
    assert len(offered(package.Client)) == 7


def test_a_call_may_ask_that_nothing_is_kept(client: Any, mesh: Mesh) -> None:
    client.predict("reviews", ["a"], store=False)
    client.generate("headlines", text="a", store=False)
    list(client.stream("headlines", text="a", store=False))
    client.generate("headlines", text="a")
    assert [request.HasField("store") and not request.store for request in mesh.requests] == [True, True, True, False]


def test_a_client_for_which_no_one_waits_says_so(package: ModuleType, address: str, client: Any, mesh: Mesh) -> None:
    with package.Client(address, background=True) as later:
        later.generate("headlines", text="a")
    client.generate("headlines", text="a")
    assert [metadata.get("x-service-tier") for metadata in mesh.metadata] == ["flex", None]


def test_a_client_without_a_budget_does_not_retry(package: ModuleType, address: str, mesh: Mesh) -> None:
    mesh.failures = [UnavailableError("restarting", retry_after_s=0.01)]
    with package.Client(address, retries=0) as client, pytest.raises(package.TidemillError, match="UNAVAILABLE"):
        client.generate("headlines", text="a")
    assert len(mesh.requests) == 1


def test_what_may_pass_is_retried_after_the_time_that_the_mesh_names(client: Any, mesh: Mesh) -> None:
    busy = ResourceExhaustedError("full", retry_after_s=0.01)
    mesh.failures = [busy, UnavailableError("restarting", retry_after_s=0.01)]
    client.feedback("answers/1", rating=-1, correction="Better", author="me")
    assert len(mesh.requests) == 3
    assert len({request.request_id for request in mesh.requests}) == 1
    assert (mesh.requests[0].rating, mesh.requests[0].correction, mesh.requests[0].author) == (-1, "Better", "me")
    mesh.failures = [busy]
    assert "".join(piece.text for piece in client.stream("headlines", text="a")) == "A headline"


def test_judgements_go_out_with_all_that_was_said(client: Any, mesh: Mesh, package: ModuleType) -> None:
    said = {
        "rating": -0.5,
        "label": "bad",
        "correction": "Better",
        "comment": "why",
        "episode": "e",
        "author": "me",
        "signal": "edited",
    }
    client.feedback("answers/1", **said)
    client.feedback_batch([package.Judgement("answers/1", **said) for _ in range(1001)])
    single, *batches = mesh.requests
    assert [len(batch.judgements) for batch in batches] == [1000, 1]
    assert len({each.request_id for batch in batches for each in batch.judgements}) == 1001
    for message in (single, batches[0].judgements[0]):
        assert message.answer == "answers/1"
        assert message.signal == pipeline.FEEDBACK_SIGNAL_EDITED
        assert {name: getattr(message, name) for name in said if name != "signal"} == {
            name: value for name, value in said.items() if name != "signal"
        }


def test_what_cannot_pass_is_raised_with_its_facts(client: Any, mesh: Mesh, package: ModuleType) -> None:
    wrong = InvalidArgumentError("No.", reason="INVALID_FIELD", violations=[FieldViolation("texts[0]", "is empty")])
    mesh.failures = [wrong]
    with pytest.raises(package.TidemillError, match=r"INVALID_ARGUMENT: No.\n  texts\[0\]: is empty") as raised:
        client.predict("reviews", [""])
    assert raised.value.reason == "INVALID_FIELD"
    assert len(mesh.requests) == 1


def test_a_call_ends_with_its_timeout_and_a_retry_that_would_come_too_late_is_not_waited_for(
    client: Any, mesh: Mesh, package: ModuleType
) -> None:
    mesh.failures = [ResourceExhaustedError("full", retry_after_s=60.0)]
    with pytest.raises(package.TidemillError) as raised:
        client.generate("headlines", text="a", timeout=5)
    assert (raised.value.code, raised.value.retry_after) == ("RESOURCE_EXHAUSTED", 60.0)


def test_a_client_whose_calls_mostly_fail_retries_no_more(client: Any, mesh: Mesh, package: ModuleType) -> None:
    mesh.failures = [UnavailableError("down", retry_after_s=0.001) for _ in range(50)]
    for _ in range(3):
        with pytest.raises(package.TidemillError):
            client.predict("reviews", ["a"])
    assert len(mesh.requests) == 3 + 10  # half of the budget of 20


def test_a_stream_that_broke_is_not_begun_again(client: Any, mesh: Mesh, package: ModuleType) -> None:
    mesh.breaks_after = 2
    got: list[str] = []

    def read() -> None:
        for piece in client.stream("headlines", text="a"):
            got.append(piece.text)

    with pytest.raises(package.TidemillError, match="UNAVAILABLE"):
        read()
    assert got == ["A", " head"]
    assert len(mesh.requests) == 1


async def test_the_same_for_an_event_loop(package: ModuleType, address: str, mesh: Mesh) -> None:
    mesh.failures = [UnavailableError("restarting", retry_after_s=0.01)]
    async with package.AsyncClient(address, key="k") as client:
        found = await client.predict("reviews", [str(number) for number in range(300)])
        assert [item.id for item in found] == [f"answers/{number}" for number in range(300)]
        assert (await client.generate("headlines", text="a")).text == "A headline"
        stream: AsyncIterator[Any] = client.stream("headlines", text="a")
        assert "".join([piece.text async for piece in stream]) == "A headline"
        await client.feedback("answers/1", rating=1)
        mesh.failures = [InvalidArgumentError("No.")]
        with pytest.raises(package.TidemillError, match="INVALID_ARGUMENT"):
            await client.generate("headlines", text="a")


def test_the_wheel_brings_grpc_and_nothing_of_the_mesh(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    needed = [line.split()[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    names = [item.partition("<")[0].partition(">")[0] for item in needed]
    assert sorted(names) == ["googleapis-common-protos", "grpcio", "protobuf"]
    shown = subprocess.run(
        [sys.executable, "-c", "import sys, tidemill_client; print(*{name.partition('.')[0] for name in sys.modules})"],
        env={"PYTHONPATH": str(wheel)},
        cwd=wheel.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    assert not {"torch", "transformers", "services", "gateway", "tidemill"} & set(shown.stdout.split())
