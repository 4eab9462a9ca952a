"""Publishing, swapping and rolling back, with the answers in between."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from kafka import KafkaConsumer
from tidemill.inference.v1 import inference_events_pb2 as events
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import inference_service_pb2_grpc as stubs
from tidemill.inference.v1 import model_pb2
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from infra.stack.state import StackState
from tests.integration.inference.builds import WORDS, make_classifier
from tests.integration.inference.conftest import BuildFolder, Builds, InferenceProcess
from tests.waiting import eventually, wait_until

pytestmark = pytest.mark.real

SERVING, RETIRED, FAILED = (
    model_pb2.ModelVersion.STATE_SERVING,
    model_pb2.ModelVersion.STATE_RETIRED,
    model_pb2.ModelVersion.STATE_FAILED,
)


def _predict(inference: InferenceProcess, model: str, *texts: str) -> Any:
    return inference.stub.Predict(pb.PredictRequest(model=f"models/{model}", texts=texts), timeout=30)


def _versions(inference: InferenceProcess, model: str) -> list[tuple[str, int]]:
    request = pb.ListModelVersionsRequest(model=f"models/{model}")
    found = inference.stub.ListModelVersions(request, timeout=10).model_versions
    return [(version.name.rpartition("/")[2], version.state) for version in found]


def reason_of(error: Any) -> str:
    """The stable reason of an error."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    assert status is not None
    assert any(detail.Unpack(info) for detail in status.details)
    return str(info.reason)


def events_of(stack: StackState, topic: str, kind: Any, wanted: Any) -> Any:
    """Events of one kind on a topic that are wanted, once there is one."""
    consumer = KafkaConsumer(
        topic, bootstrap_servers=stack.kafka_bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
    )
    found: list[Any] = []
    try:

        def look() -> bool:
            for records in consumer.poll(timeout_ms=500).values():
                for record in records:
                    if dict(record.headers)["ce_type"].decode() == kind.DESCRIPTOR.full_name:
                        found.append(kind.FromString(record.value))
            return any(wanted(item) for item in found)

        wait_until(look)
        return [item for item in found if wanted(item)]
    finally:
        consumer.close()


def test_a_published_classifier_answers_and_is_reported_of(
    inference: InferenceProcess, builds: Builds, model: str, stack: StackState
) -> None:
    published = inference.publish(model, builds.positive)
    assert not published.reused
    version = published.model_version
    assert (version.name, version.state) == (f"models/{model}/versions/1", SERVING)
    assert (version.task, version.precision, version.run) == ("text_classification", "fp32", "runs/test")

    answer = _predict(inference, model, "good room", "bad", "awful bad room", "the")
    assert answer.model_version == version.name
    assert [p.label for p in answer.predictions] == ["positive", "negative", "negative", "negative"]
    assert len({p.answer for p in answer.predictions}) == 4
    assert all(sum(p.scores.values()) == pytest.approx(1) for p in answer.predictions)
    assert all(p.score == pytest.approx(p.scores[p.label]) for p in answer.predictions)

    assert inference.publish(model, builds.positive).reused
    assert _versions(inference, model) == [("1", SERVING)]
    found = inference.stub.GetModel(pb.GetModelRequest(name=f"models/{model}"), timeout=10).model
    assert list(found.labels) == ["negative", "positive"]
    assert found.serving.digest == builds.positive.digest

    published_events = events_of(
        stack, "tidemill.inference.events", events.ModelPublished, lambda e: e.model_version == version.name
    )
    assert [(e.digest, e.run) for e in published_events] == [(builds.positive.digest, "runs/test")]
    for prediction in answer.predictions:
        served = events_of(
            stack, "tidemill.predictions", events.PredictionServed, lambda e, p=prediction: e.answer == p.answer
        )
        assert [(e.label, e.method, e.model_version) for e in served] == [(prediction.label, "predict", version.name)]


def test_a_classifier_embeds_texts(inference: InferenceProcess, builds: Builds, model: str) -> None:
    version = inference.publish(model, builds.positive).model_version.name
    cut = " ".join(["room"] * 70)  # the build reads 64 tokens

    def embed(*texts: str, **fields: Any) -> Any:
        return inference.stub.Embed(pb.EmbedRequest(model=f"models/{model}", texts=texts, **fields), timeout=60)

    answer = embed("good room", "room", cut)
    assert answer.model_version == version
    both, room, rooms = (list(item.values) for item in answer.embeddings)
    at = WORDS.index("room")
    assert both == pytest.approx([0.5**0.5 if word in ("good", "room") else 0.0 for word in WORDS])
    assert room == pytest.approx(rooms)
    assert room[at] == pytest.approx(1)
    assert [(item.prompt_tokens, item.truncated_tokens) for item in answer.embeddings] == [(2, 0), (1, 0), (64, 6)]
    found = _predict(inference, model, "good room", cut).predictions
    assert [(item.prompt_tokens, item.truncated_tokens) for item in found] == [(2, 0), (64, 6)]
    # More texts than a batch of Triton's holds, each with its own.
    many = embed(*(WORDS[2 + number % 7] for number in range(200))).embeddings
    assert [list(item.values).index(1.0) for item in many] == [2 + number % 7 for number in range(200)]
    with pytest.raises(grpc.RpcError) as refused:
        embed("good", cut, truncate=False)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"`texts[1]` has 70 tokens, and {version} reads 64" in str(refused.value.details())


def test_a_model_that_labels_tokens_answers_with_spans_and_embeds(
    inference: InferenceProcess, builds: Builds, model: str
) -> None:
    folder = builds.root / model
    tags = ("B-BAD", "B-GOOD", "O")
    inference.publish(model, BuildFolder(folder, make_classifier(folder, labels=tags, each_token=True)))
    first, second = _predict(inference, model, "the good room is bad", " ".join(["the"] * 70)).predictions
    assert [(span.start, span.end, span.label) for span in first.spans] == [(4, 8, "GOOD"), (17, 20, "BAD")]
    assert (first.prompt_tokens, first.truncated_tokens) == (5, 0)
    assert (list(second.spans), second.prompt_tokens, second.truncated_tokens) == ([], 64, 6)
    vectors = inference.stub.Embed(pb.EmbedRequest(model=f"models/{model}", texts=["room"]), timeout=60).embeddings
    assert list(vectors[0].values) == [float(word == "room") for word in WORDS]


def test_a_build_from_before_embeddings_keeps_serving_and_says_what_to_do(
    inference: InferenceProcess, builds: Builds, model: str
) -> None:
    inference.publish(model, builds.turned)
    assert _predict(inference, model, "good").predictions[0].label == "negative"
    with pytest.raises(grpc.RpcError, match="gives no embeddings") as refused:
        inference.stub.Embed(pb.EmbedRequest(model=f"models/{model}", texts=["good"]), timeout=60)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "Train the model again" in str(refused.value.details())


def test_many_texts_keep_their_order(inference: InferenceProcess, builds: Builds, model: str) -> None:
    inference.publish(model, builds.positive)
    texts = [("good " if i % 3 else "bad ") * (1 + i % 40) for i in range(200)]
    answer = _predict(inference, model, *texts)
    assert [p.label for p in answer.predictions] == ["positive" if i % 3 else "negative" for i in range(200)]


async def test_no_request_fails_while_versions_swap(inference: InferenceProcess, builds: Builds, model: str) -> None:
    await asyncio.to_thread(inference.publish, model, builds.positive)
    truth = {f"models/{model}/versions/1": "positive", f"models/{model}/versions/2": "negative"}
    answered: Counter[str] = Counter()
    stop = asyncio.Event()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{inference.port}")
    stub: Any = stubs.InferenceServiceStub(channel)

    async def ask(number: int) -> None:
        answer = await stub.Predict(pb.PredictRequest(model=f"models/{model}", texts=[f"good room {number}"]))
        assert answer.predictions[0].label == truth[answer.model_version]
        answered[answer.model_version] += 1

    async def load() -> None:
        async with asyncio.TaskGroup() as group:
            number = 0
            while not stop.is_set():
                number += 1
                group.create_task(ask(number))
                await asyncio.sleep(0.01)

    async def more(version: str) -> None:
        wanted = answered[version] + 25
        await eventually(lambda: answered[version] >= wanted, f"answers of {version}")

    running = asyncio.create_task(load())
    back = pb.RollBackModelRequest(model=f"models/{model}")
    for _ in range(2):
        published = await asyncio.to_thread(inference.publish, model, builds.turned)
        assert published.model_version.name.endswith("/2")
        await more(published.model_version.name)
        back_at = (await stub.RollBackModel(back)).model_version.name
        assert back_at.endswith("/1")
        await more(back_at)
    stop.set()
    await running
    await channel.close()
    assert set(answered) == set(truth)
    assert min(answered.values()) > 20


def test_rolling_back(inference: InferenceProcess, builds: Builds, model: str) -> None:
    inference.publish(model, builds.positive)
    name = f"models/{model}"
    with pytest.raises(grpc.RpcError) as caught:
        inference.stub.RollBackModel(pb.RollBackModelRequest(model=name), timeout=60)
    assert reason_of(caught.value) == "NO_EARLIER_VERSION"
    inference.publish(model, builds.turned)
    assert _predict(inference, model, "good").predictions[0].label == "negative"
    assert _versions(inference, model) == [("2", SERVING), ("1", RETIRED)]
    back = inference.stub.RollBackModel(pb.RollBackModelRequest(model=name), timeout=60).model_version
    assert back.name == f"{name}/versions/1"
    assert _predict(inference, model, "good").predictions[0].label == "positive"
    with pytest.raises(grpc.RpcError) as caught:
        inference.stub.RollBackModel(pb.RollBackModelRequest(model=name, version=9), timeout=60)
    assert reason_of(caught.value) == "MODEL_VERSION_NOT_FOUND"
    forward = inference.stub.RollBackModel(pb.RollBackModelRequest(model=name, version=2), timeout=60).model_version
    assert forward.state == SERVING
    assert _predict(inference, model, "good").predictions[0].label == "negative"


def test_a_refused_build_leaves_what_served(
    inference: InferenceProcess, builds: Builds, model: str, stack: StackState
) -> None:
    inference.publish(model, builds.positive)
    with pytest.raises(grpc.RpcError) as caught:
        inference.publish(model, builds.broken)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(caught.value) == "TRITON_REFUSED"
    assert "openvino_model.xml" in (caught.value.details() or "")
    # It does not take the whole server out of service.
    assert httpx.get(f"http://127.0.0.1:{inference.http}/v2/health/ready", timeout=30).status_code == 200
    assert _predict(inference, model, "good").predictions[0].label == "positive"
    assert _versions(inference, model) == [("2", FAILED), ("1", SERVING)]
    assert sorted(path.name for path in (stack.triton_repository / f"{model}.1").iterdir()) == ["1", "config.pbtxt"]
    assert not (stack.triton_repository / f"{model}.2").exists()
    assert inference.publish(model, builds.turned).model_version.name.endswith("/3")


def test_a_build_that_is_not_what_was_promised_is_not_published(
    inference: InferenceProcess, builds: Builds, model: str
) -> None:
    request = pb.PublishModelRequest(
        model=f"models/{model}", artifact_uri=f"file://{builds.positive.path}", digest="0" * 64
    )
    with pytest.raises(grpc.RpcError) as caught:
        inference.control.PublishModel(request, timeout=60)
    assert reason_of(caught.value) == "DIGEST_MISMATCH"
    request.artifact_uri = f"file://{builds.positive.path}-nowhere"
    with pytest.raises(grpc.RpcError) as caught:
        inference.control.PublishModel(request, timeout=60)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        _predict(inference, model, "good")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_an_unpublished_model_answers_no_more_until_it_is_published(
    inference: InferenceProcess, builds: Builds, model: str
) -> None:
    inference.publish(model, builds.positive)
    taken = inference.stub.UnpublishModel(pb.UnpublishModelRequest(model=f"models/{model}"), timeout=60).model
    assert not taken.HasField("serving")
    with pytest.raises(grpc.RpcError) as caught:
        _predict(inference, model, "good")
    assert reason_of(caught.value) == "MODEL_NOT_FOUND"
    assert inference.publish(model, builds.positive).model_version.name.endswith("/1")
    assert _predict(inference, model, "good").predictions[0].label == "positive"


def test_what_triton_forgot_is_loaded_again(
    inference: InferenceProcess, builds: Builds, model: str, stack: StackState
) -> None:
    inference.publish(model, builds.positive)
    inference.publish(model, builds.turned)
    with grpc.insecure_channel(stack.triton_grpc) as channel:
        triton = GRPCInferenceServiceStub(channel)
        triton.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(model_name=f"{model}.2"), timeout=30)
        shutil.rmtree(stack.triton_repository / f"{model}.2")
        ready = service_pb2.ModelReadyRequest(name=f"{model}.2")
        wait_until(lambda: triton.ModelReady(ready, timeout=5).ready)
    assert _predict(inference, model, "good").predictions[0].label == "negative"


def test_a_killed_service_continues_where_it_was(inference: InferenceProcess, builds: Builds, model: str) -> None:
    inference.publish(model, builds.positive)
    inference.publish(model, builds.turned)
    inference.kill()
    inference.start()
    answer = _predict(inference, model, "good")
    assert (answer.predictions[0].label, answer.model_version) == ("negative", f"models/{model}/versions/2")
    assert inference.publish(model, builds.turned).reused
    assert _versions(inference, model) == [("2", SERVING), ("1", RETIRED)]


def test_models_are_listed_in_pages(inference: InferenceProcess, builds: Builds, model: str) -> None:
    for suffix in ("a", "b", "c"):
        inference.publish(f"{model}-{suffix}", builds.positive)
    seen: list[str] = []
    token = ""
    while True:
        page = inference.stub.ListModels(pb.ListModelsRequest(page_size=2, page_token=token), timeout=10)
        assert len(page.models) <= 2
        seen += [item.name for item in page.models]
        token = page.next_page_token
        if not token:
            break
    assert seen == sorted(set(seen))
    assert {f"models/{model}-{suffix}" for suffix in ("a", "b", "c")} <= set(seen)


def test_a_model_for_something_else_says_so(inference: InferenceProcess, builds: Builds, model: str) -> None:
    inference.publish(model, builds.positive)
    with pytest.raises(grpc.RpcError) as caught:
        inference.stub.Generate(pb.GenerateRequest(model=f"models/{model}", text="good"), timeout=30)
    assert reason_of(caught.value) == "WRONG_TASK"
    with pytest.raises(grpc.RpcError) as caught:
        inference.stub.Predict(pb.PredictRequest(model=f"models/{model}"), timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
