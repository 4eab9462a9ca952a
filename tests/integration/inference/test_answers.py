"""Generation, traces into Triton, and clients written for Triton."""

from __future__ import annotations

import json
import os
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import model_pb2
from tritonclient.utils import InferenceServerException

from infra.stack.state import StackState
from services.inference.triton_models.text_stream import IncrementalDecoder
from services.kit.engine import import_openvino, open_language_model
from tests.integration.inference.builds import TEMPLATE
from tests.integration.inference.conftest import Builds, InferenceProcess, SpanReceiver
from tests.waiting import wait_for, wait_until

pytestmark = pytest.mark.real

STOP, LENGTH = model_pb2.FINISH_REASON_STOP, model_pb2.FINISH_REASON_LENGTH
Spans = tuple[SpanReceiver, str]


@pytest.fixture(scope="module")
def writer(inference: InferenceProcess, builds: Builds) -> str:
    """A published model that writes."""
    return str(inference.publish("test-writer", builds.writer).model_version.name.split("/")[1])


def _stream(inference: InferenceProcess, model: str, **fields: Any) -> list[Any]:
    request = pb.StreamGenerateRequest(model=f"models/{model}", **fields)
    return list(inference.stub.StreamGenerate(request, timeout=120))


def _text(pieces: list[Any]) -> str:
    return "".join(piece.text_delta for piece in pieces)


def _talk(text: str) -> model_pb2.Conversation:
    return model_pb2.Conversation(messages=[model_pb2.ChatMessage(role="user", content=text)])


def _sampling(**fields: Any) -> model_pb2.SamplingParams:
    return model_pb2.SamplingParams(**fields)


def _trace() -> tuple[bytes, bytes, list[tuple[str, str]]]:
    trace_id, span_id = os.urandom(16), os.urandom(8)
    return trace_id, span_id, [("traceparent", f"00-{trace_id.hex()}-{span_id.hex()}-01")]


def test_a_stream_is_what_the_runtime_writes(inference: InferenceProcess, builds: Builds, writer: str) -> None:
    """Parity: the same prompt by hand, in the runtime itself, gives the same tokens."""
    openvino = import_openvino()
    import openvino_genai
    from tokenizers import Tokenizer

    text = "the room is good and lovely"
    pieces = _stream(inference, writer, text=text, sampling=_sampling(max_tokens=12))
    whole = inference.stub.Generate(
        pb.GenerateRequest(model=f"models/{writer}", text=text, sampling=_sampling(max_tokens=12)), timeout=60
    )

    tokenizer = Tokenizer.from_file(str(builds.writer.path / "tokenizer.json"))
    message = TEMPLATE.replace("{text}", text)
    prompt = tokenizer.encode(f"<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n").ids
    pipeline, _ = open_language_model(builds.writer.path, cache_bytes=2**24, max_active=1, prefix_caching=False)
    config = openvino_genai.GenerationConfig(max_new_tokens=12, do_sample=False, stop_token_ids={2})
    (result,) = pipeline.generate([openvino.Tensor(np.asarray([prompt], dtype=np.int64))], [config])
    tokens = [int(token) for token in result.m_generation_ids[0]]
    expected = tokenizer.decode([token for token in tokens if token != 2])

    # Its noise may end within a character.
    assert _text(pieces) == whole.text == expected.rstrip("\ufffd")
    assert all(piece.model_version == f"models/{writer}/versions/1" for piece in pieces)
    assert len({piece.answer for piece in pieces}) == 1
    assert [bool(piece.finish_reason) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    last = pieces[-1]
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens == len(prompt)
    assert last.usage.completion_tokens == whole.usage.completion_tokens == len([t for t in tokens if t != 2])
    assert last.finish_reason == whole.finish_reason == (STOP if tokens[-1] == 2 else LENGTH)


def test_a_text_that_was_cut_is_reported(inference: InferenceProcess, writer: str) -> None:
    long, sampling = "the room is good " * 200, _sampling(max_tokens=2)
    pieces = _stream(inference, writer, text=long, sampling=sampling)
    usage = pieces[-1].usage
    assert usage.prompt_tokens <= 128 < usage.truncated_tokens
    whole = inference.stub.Generate(pb.GenerateRequest(model=f"models/{writer}", text="the room", sampling=sampling))
    assert whole.usage.truncated_tokens == 0
    body: dict[str, Any] = {"model": writer, "messages": [{"role": "user", "content": long}], "max_tokens": 2}
    with httpx.Client(base_url=f"http://127.0.0.1:{inference.http}", timeout=30) as http:
        answer = http.post("/v1/chat/completions", json=body).json()
        assert (answer["truncated"], answer["usage"]["truncated_tokens"]) == (True, usage.truncated_tokens)
        lines = http.post("/v1/chat/completions", json=body | {"stream": True}).text.split("\n\n")
    assert json.loads(lines[-3].removeprefix("data: "))["truncated"]


def test_a_seed_makes_an_answer_the_same_again(inference: InferenceProcess, writer: str) -> None:
    def ask(seed: int) -> str:
        sampling = _sampling(max_tokens=24, temperature=1.5, seed=seed)
        return _text(_stream(inference, writer, conversation=_talk("hello"), sampling=sampling))

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(5)}) > 1


def test_a_stop_text_ends_an_answer_and_is_not_part_of_it(inference: InferenceProcess, writer: str) -> None:
    sampling = _sampling(max_tokens=40, temperature=1.0, seed=3)
    whole = _text(_stream(inference, writer, conversation=_talk("hello"), sampling=sampling))
    stop = whole[len(whole) // 2 :][:3]
    sampling.stop.append(stop)
    pieces = _stream(inference, writer, conversation=_talk("hello"), sampling=sampling)
    assert _text(pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == STOP


def test_a_prompt_beyond_the_context_is_refused_and_a_long_text_is_cut(
    inference: InferenceProcess, writer: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        _stream(inference, writer, conversation=_talk("hello " * 300))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "context holds 256" in (caught.value.details() or "")
    info = error_details_pb2.ErrorInfo()
    status: Any = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.reason == "CONTEXT_LENGTH_EXCEEDED"
    # A record's text is cut as it was in training: the frame stays whole, within max_input_tokens.
    pieces = _stream(inference, writer, text="the room " * 300, sampling=_sampling(max_tokens=2))
    assert 120 <= pieces[-1].usage.prompt_tokens <= 130


def test_a_caller_that_leaves_ends_the_generation(inference: InferenceProcess, writer: str, spans: Spans) -> None:
    limit = 230
    request = pb.StreamGenerateRequest(
        model=f"models/{writer}", conversation=_talk("hi"), sampling=_sampling(max_tokens=limit)
    )
    receiver, _ = spans

    def cancelled() -> list[Any]:
        trace_id, _, metadata = _trace()

        def leave(number: int) -> None:
            call = inference.stub.StreamGenerate(request, timeout=60, metadata=metadata)
            next(call)
            call.cancel()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(leave, range(8)))
        ended = wait_for(lambda: _named(receiver, trace_id, "generate"), lambda found: len(found) == 8)
        return [span for span in ended if span.status.message == "cancelled by the caller"]

    # The model is small: on a busy machine all eight may be complete before the cancellation arrives.
    for span in wait_for(cancelled, bool, "a generation that its caller cancelled"):
        assert _attributes(span)["gen_ai.usage.output_tokens"] < limit


def test_streams_continue_while_a_version_is_replaced(inference: InferenceProcess, builds: Builds, model: str) -> None:
    inference.publish(model, builds.writer)
    replaced = threading.Event()
    ended: list[str] = []

    def ask(number: int) -> list[list[Any]]:
        sampling = _sampling(max_tokens=200, temperature=1.0, seed=number)
        answers: list[list[Any]] = []
        while not replaced.is_set():
            answers.append(_stream(inference, model, conversation=_talk("hi"), sampling=sampling))
            ended.append(answers[-1][-1].model_version)
        return answers

    def answers_come_from(version: str, since: int) -> bool:
        return version in ended[since:]

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, number) for number in range(4)]
        try:
            for build, number in ((builds.second_writer, 2), (builds.writer, 1), (builds.second_writer, 2)):
                since = len(ended)
                version = inference.publish(model, build).model_version.name
                assert version.endswith(f"/{number}")
                wait_for(partial(answers_come_from, version, since), bool, f"an answer of {version}")
        finally:
            replaced.set()
        answers = [pieces for future in asked for pieces in future.result()]
    assert all(pieces[-1].finish_reason in (STOP, LENGTH) for pieces in answers)
    assert all(len({piece.model_version for piece in pieces}) == 1 for pieces in answers)
    assert {pieces[0].model_version for pieces in answers} == {f"models/{model}/versions/{n}" for n in (1, 2)}


def _named(receiver: SpanReceiver, trace_id: bytes, verb: str) -> list[Any]:
    found = [span for service, span in receiver.of(trace_id) if service == "triton"]
    return [span for span in found if span.name.startswith("triton.") and span.name.endswith(f".{verb}")]


def _attributes(span: Any) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_one_trace_goes_from_the_caller_into_triton(
    inference: InferenceProcess, builds: Builds, model: str, writer: str, spans: Spans
) -> None:
    inference.publish(model, builds.positive)
    receiver, _ = spans
    trace_id, root, metadata = _trace()
    text = f"good room {trace_id.hex()}"
    inference.stub.Predict(pb.PredictRequest(model=f"models/{model}", texts=[text]), timeout=30, metadata=metadata)
    request = pb.GenerateRequest(model=f"models/{writer}", text="room", sampling=_sampling(max_tokens=4))
    inference.stub.Generate(request, timeout=30, metadata=metadata)

    def whole() -> Any:
        found = receiver.of(trace_id)
        inside = [span for service, span in found if service == "triton"]
        ours = {span.span_id: span for service, span in found if service == "gateway"}
        return len(inside) == 2 and all(span.parent_span_id in ours for span in inside) and (inside, ours)

    inside, ours = wait_until(whole)
    assert {span.name for span in inside} == {f"triton.{model}.execute", f"triton.{writer}.generate"}
    assert all(ours[span.parent_span_id].parent_span_id == root for span in inside)
    generated = next(span for span in inside if span.name.endswith("generate"))
    assert _attributes(generated)["tidemill.model.version"] == f"models/{writer}/versions/1"
    assert _attributes(generated)["gen_ai.usage.output_tokens"] == 4
    assert [event.name for event in generated.events] == ["first token"]


def test_tritons_own_client_classifies(inference: InferenceProcess, builds: Builds, model: str) -> None:
    inference.publish(model, builds.positive)
    with triton.InferenceServerClient(f"127.0.0.1:{inference.port}") as client:
        assert client.is_server_live(client_timeout=10)
        assert client.is_server_ready(client_timeout=10)
        assert client.is_model_ready(model, client_timeout=10)
        assert not client.is_model_ready("no-such-model", client_timeout=10)
        metadata = client.get_model_metadata(model, as_json=True, client_timeout=10)
        assert metadata["versions"] == ["1"]
        outputs = ["label", "score", "scores", "prompt_tokens", "truncated_tokens", "embedding"]
        assert [item["name"] for item in metadata["outputs"]] == outputs
        tensor = triton.InferInput("text", [2, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[b"good room"], [b"bad"]], dtype=np.object_))
        answer = client.infer(model, [tensor], client_timeout=30)
        assert answer.as_numpy("label").reshape(-1).tolist() == [b"positive", b"negative"]
        assert answer.as_numpy("scores").shape == (2, 2)
        with pytest.raises(InferenceServerException) as caught:
            client.infer("no-such-model", [tensor], client_timeout=30)
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        for forbidden in (client.unload_model, client.load_model):
            with pytest.raises(InferenceServerException) as caught:
                forbidden(model, client_timeout=10)
            assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_a_request_for_some_outputs_gives_no_other_caller_part_of_an_answer(
    inference: InferenceProcess, builds: Builds, model: str
) -> None:
    """A cache that identifies an answer by its inputs alone would mix them."""
    inference.publish(model, builds.positive)
    everything = {"label": [b"positive"], "score": [pytest.approx(0.8808, abs=1e-4)], "truncated_tokens": [0]}

    long = ("scores", "prompt_tokens", "embedding")

    def predict(text: str) -> str:
        answer = inference.stub.Predict(pb.PredictRequest(model=f"models/{model}", texts=[text]), timeout=30)
        return str(answer.predictions[0].label)

    with triton.InferenceServerClient(f"127.0.0.1:{inference.port}") as client:

        def ask(text: str, *outputs: Any) -> dict[str, list[Any]]:
            tensor = triton.InferInput("text", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
            answer = client.infer(model, [tensor], outputs=list(outputs) or None, client_timeout=30)
            names = [output.name for output in answer.get_response().outputs]
            return {name: answer.as_numpy(name).reshape(-1).tolist() for name in names if name not in long}

        assert predict("good one") == "positive"
        assert ask("good one") == everything
        assert ask("good two", triton.InferRequestedOutput("label")) == {"label": [b"positive"]}
        assert ask("good two") == everything
        assert predict("good two") == "positive"
        assert ask("good three", triton.InferRequestedOutput("score", class_count=1)) == {"score": [b"0.880797:0"]}
        assert ask("good three") == everything
        assert predict("good three") == "positive"
        with pytest.raises(InferenceServerException, match="unexpected inference output 'colour'"):
            ask("good four", triton.InferRequestedOutput("colour"))


def test_tritons_own_client_streams(inference: InferenceProcess, writer: str) -> None:
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(f"127.0.0.1:{inference.port}") as client:
        client.start_stream(lambda result, error: results.put((result, error)))
        messages = triton.InferInput("messages_json", [1], "BYTES")
        content = json.dumps([{"role": "user", "content": "hello"}]).encode()
        messages.set_data_from_numpy(np.array([content], dtype=np.object_))
        limit = triton.InferInput("max_tokens", [1], "INT32")
        limit.set_data_from_numpy(np.array([6], dtype=np.int32))
        client.async_stream_infer(writer, [messages, limit])
        text = b""
        while True:
            result, error = results.get(timeout=60)
            assert error is None
            text += result.as_numpy("text_delta")[0]
            if result.as_numpy("finish_reason")[0]:
                break
        client.stop_stream()
    assert text.decode() == _text(
        _stream(inference, writer, conversation=_talk("hello"), sampling=_sampling(max_tokens=6))
    )


def test_the_decoder_agrees_with_the_tokenizer(builds: Builds) -> None:
    """On a real byte-level tokenizer, pieces add up to the whole text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(builds.writer.path / "tokenizer.json"))
    for text in ("the room is good", "房间很好，非常干净。", "Ünïcödé — naïve 🙂🙃", "mixed 房 room 🙂 end"):
        tokens = tokenizer.encode(text).ids
        decoder = IncrementalDecoder(lambda ids: str(tokenizer.decode(list(ids))))
        pieces = [decoder.push(token) for token in tokens] + [decoder.flush()]
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)


def test_unavailable_triton_is_reported_with_a_time_to_retry(
    stack: StackState, spans: Spans, builds: Builds, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A service whose Triton does not answer serves its other calls and says when to come again."""
    folder = tmp_path_factory.mktemp("lost-")
    lost = replace(stack, state=folder, sockets={"triton_grpc": folder / "nothing"})
    service = InferenceProcess(lost, folder, spans[1], builds.root)
    service.start()
    try:
        with triton.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
            assert not client.is_server_ready(client_timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            service.publish_once("waits", builds.positive)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        status: Any = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details)
        assert retry.retry_delay.seconds > 0
        # The publication can be repeated under the same number.
        listed = service.stub.ListModelVersions(pb.ListModelVersionsRequest(model="models/waits"), timeout=10)
        states = [version.state for version in listed.model_versions]
        assert states == [model_pb2.ModelVersion.STATE_LOADING]
    finally:
        assert service.stop() == 0


def test_an_answer_follows_a_schema_and_says_how_probable_its_tokens_are(
    inference: InferenceProcess, writer: str
) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 12}},
        "required": ["n"],
    }
    sampling = _sampling(temperature=1.0, seed=3, json_schema=json.dumps(schema), logprobs=True, top_k=50)
    pieces = _stream(inference, writer, conversation=_talk("hi"), sampling=sampling)
    assert pieces[-1].finish_reason == STOP
    assert 1 <= json.loads(_text(pieces))["n"] <= 12
    tokens = [token for piece in pieces for token in piece.logprobs]
    assert len(tokens) == pieces[-1].usage.completion_tokens
    assert "".join(token.token for token in tokens) == _text(pieces)
    assert all(token.logprob <= 0 for token in tokens)
    whole = inference.stub.Generate(
        pb.GenerateRequest(model=f"models/{writer}", conversation=_talk("hi"), sampling=sampling), timeout=60
    )
    assert (whole.text, len(whole.logprobs)) == (_text(pieces), len(tokens))


def test_a_schema_that_no_engine_can_read_is_refused_and_breaks_nothing(
    inference: InferenceProcess, writer: str
) -> None:
    """In the engine it would break the pipeline for every later caller; KServe V2 has no check before the model."""
    with pytest.raises(grpc.RpcError) as caught:
        _stream(inference, writer, text="hi", sampling=_sampling(json_schema='{"type": "nonsense"}'))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "/type: must be one of object" in (caught.value.details() or "")
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(f"127.0.0.1:{inference.port}") as client:
        client.start_stream(lambda result, error: results.put((result, error)))
        inputs = [triton.InferInput(name, [1], "BYTES") for name in ("text", "json_schema")]
        for item, value in zip(inputs, (b"hi", b'{"type": "nonsense"}'), strict=True):
            item.set_data_from_numpy(np.array([value], dtype=np.object_))
        client.async_stream_infer(writer, inputs)
        _, error = results.get(timeout=60)
        client.stop_stream()
    assert "/type: must be one of object" in str(error)
    assert _stream(inference, writer, conversation=_talk("hi"), sampling=_sampling(max_tokens=2))[-1].finish_reason
