"""The official `openai` package against the gateway, unchanged."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from gateway.http import generation
from tests.integration.gateway.conftest import Mesh
from tests.integration.gateway.fake_peers import ANSWER, VERSION, WORDS

ASK: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "An article."}]


@pytest.fixture
def client(mesh: Mesh) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{mesh.http}/v1", api_key=mesh.key, max_retries=0)


def test_whole_answer(mesh: Mesh, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="headlines",
        messages=[
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        ],
        max_completion_tokens=12,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop="\n",
    )
    assert answer.id == ANSWER
    assert answer.choices[0].message.content == "".join(WORDS)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10
    assert answer.system_fingerprint == VERSION
    request = mesh.peers.seen.requests[-1]
    assert request.model == "models/headlines"
    assert [(m.role, m.content) for m in request.conversation.messages] == [("system", "Be short."), ("user", "Hi")]
    assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.top_p) == (12, 0.5, 0.9)
    assert (request.sampling.seed, list(request.sampling.stop)) == (7, ["\n"])


def test_several_answers_with_log_probabilities(mesh: Mesh, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="headlines",
        messages=ASK,
        n=2,
        logprobs=True,
        presence_penalty=0.5,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string"}}},
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert [token.token for token in choice.logprobs.content] == list(WORDS)
        assert choice.logprobs.content[0].bytes == list(WORDS[0].encode())
        assert choice.logprobs.content[0].logprob == -0.5
    sampling = mesh.peers.seen.requests[-1].sampling
    assert (sampling.json_schema, sampling.presence_penalty) == ('{"type":"string"}', 0.5)
    streamed = client.chat.completions.create(model="headlines", messages=ASK, logprobs=True, stream=True)
    tokens = [chunk.choices[0].logprobs for chunk in streamed if chunk.choices]
    assert [found.content[0].token for found in tokens if found is not None and found.content] == list(WORDS)


def test_a_schema_that_is_not_covered_is_refused_with_its_place(client: openai.OpenAI) -> None:
    schema: dict[str, object] = {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as found:
            client.chat.completions.create(
                model="headlines",
                messages=ASK,
                response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
                stream=stream,
            )
        assert found.value.param == "response_format"
        assert "/properties/a/pattern: is not offered" in found.value.message


def test_streamed_answer_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="headlines",
            messages=ASK,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert {chunk.id for chunk in chunks} == {ANSWER}
    assert [c.choices[0].delta.content for c in chunks[1:-2]] == list(WORDS)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (7, 3)


def test_several_answers_are_streamed_side_by_side(mesh: Mesh, client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="headlines", messages=ASK, n=3, seed=7, stream=True, stream_options={"include_usage": True}
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    for index in range(3):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in own) == "".join(WORDS)
        assert [choice.finish_reason for choice in own if choice.finish_reason] == ["length"]
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (7, 9)
    assert {request.sampling.seed for request in mesh.peers.seen.requests[-3:]} == {7, 8, 9}
    # One that fails ends the stream with its error.
    failing: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "break"}]
    with pytest.raises(openai.APIError, match="the runtime failed"):
        list(client.chat.completions.create(model="headlines", messages=failing, n=2, stream=True))


def test_prompt_template_is_the_models_own(mesh: Mesh, client: openai.OpenAI) -> None:
    """A stock client gets what was trained; whoever wants the bare conversation says so."""
    for extra in ({"apply_prompt_template": True}, {}):
        client.chat.completions.create(model="headlines", messages=ASK, extra_body=extra)
        assert mesh.peers.seen.requests[-1].text == "An article."
    client.chat.completions.create(model="headlines", messages=ASK, extra_body={"apply_prompt_template": False})
    assert [turn.content for turn in mesh.peers.seen.requests[-1].conversation.messages] == ["An article."]


def test_embeddings(client: openai.OpenAI) -> None:
    """The stock client asks for base64 and decodes it itself, unless numbers are asked for."""
    found = client.embeddings.create(model="reviews", input=["one", "long text"])
    numbers = client.embeddings.create(model="reviews", input="one", encoding_format="float")
    for answer in (found, numbers):
        assert answer.data[0].embedding == pytest.approx([0.1, 0.7, 0.1, 0.7])
        assert answer.model == "reviews/versions/1"
    assert [(item.index, item.model_extra) for item in found.data] == [
        (0, {"truncated": False}),
        (1, {"truncated": True}),
    ]
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (12, 12)
    short = client.embeddings.create(model="reviews", input="one", dimensions=2).data[0].embedding
    assert short == pytest.approx([0.1 / 0.5**0.5, 0.7 / 0.5**0.5])


def test_embeddings_that_cannot_be_given_are_refused_with_what_to_do(client: openai.OpenAI) -> None:
    refused: list[tuple[dict[str, Any], str, str]] = [
        ({"model": "m"}, "no_embeddings", "Train the model again"),
        ({"model": "headlines"}, "wrong_task", "a model for generation"),
        ({"dimensions": 5}, "invalid_field", "`dimensions` must be at most 4"),
        ({"input": []}, "invalid_field", "`input` must be"),
        ({"input": [[1, 2]]}, "invalid_field", "`input` must be a text, or 1 to 2048 texts"),
        ({"encoding_format": "int8"}, "invalid_field", "`encoding_format` must be"),
    ]
    for changed, code, words in refused:
        with pytest.raises(openai.BadRequestError, match=words) as found:
            client.embeddings.create(**{"model": "reviews", "input": "one", **changed})
        assert found.value.code == code
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nothing", input="one")


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo", "headlines", "m", "reviews", "writer"]
    assert client.models.retrieve("headlines").created == 1_700_000_000
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as found:
        client.chat.completions.create(model="nothing", messages=ASK)
    assert (found.value.code, found.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model_is_reported_by_the_status_also_when_streaming(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nothing", messages=ASK, stream=stream)


@pytest.mark.parametrize(
    ("option", "value"),
    [("n", 9), ("functions", [{}]), ("top_logprobs", 2), ("temperature", 3), ("no_such_option", 1)],
)
def test_what_is_not_offered_is_refused_by_name(client: openai.OpenAI, option: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model="headlines", messages=ASK, extra_body={option: value})
    assert found.value.param == option
    assert option in found.value.message
    if option == "top_logprobs":
        assert "of each token that it chose (`logprobs`)" in found.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_contract_refuses_is_named_as_it_was_sent(client: openai.OpenAI, stream: bool) -> None:
    long: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "x" * 600_000}]
    for template in (False, True):
        with pytest.raises(openai.BadRequestError) as found:
            client.chat.completions.create(
                model="headlines", messages=long, stream=stream, extra_body={"apply_prompt_template": template}
            )
        assert found.value.param == "messages[0].content"
        assert "`messages[0].content`: must be at most 524288 bytes" in found.value.message


def test_a_wrong_key_is_refused_with_what_to_do(mesh: Mesh) -> None:
    stranger = openai.OpenAI(base_url=f"http://{mesh.http}/v1", api_key="sk-nothing", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as found:
        stranger.models.list()
    assert "tidemill keys create" in found.value.message


def test_an_error_in_the_middle_of_a_stream_reaches_the_client(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="headlines", messages=[{"role": "user", "content": "break"}], stream=True
    )
    with pytest.raises(openai.APIError) as found:
        list(stream)
    assert "failed unexpectedly" in found.value.message


@pytest.mark.parametrize("content", ["queue", "wait"])
def test_a_stream_that_waits_is_kept_open_by_comments(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """Before its first piece, while it waits for its turn, and between two."""
    monkeypatch.setattr(generation, "_KEEP_ALIVE_S", 0.05)
    body = {"model": "headlines", "stream": True, "messages": [{"role": "user", "content": content}]}
    headers = {"authorization": f"Bearer {mesh.key}"}
    with httpx.stream(
        "POST", f"http://{mesh.http}/v1/chat/completions", json=body, headers=headers, timeout=30
    ) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        assert sum(next(line for line in lines if line.startswith(":")) == ": waiting" for _ in range(3)) == 3


@pytest.mark.parametrize(("stream", "n"), [(False, 1), (True, 1), (True, 2)])
def test_a_caller_that_hangs_up_ends_the_generation(mesh: Mesh, stream: bool, n: int) -> None:
    cancelled = mesh.peers.seen.cancelled
    mesh.loop.call_soon_threadsafe(cancelled.clear)
    before = mesh.peers.seen.cancelled_calls
    body = {"model": "headlines", "stream": stream, "n": n, "messages": [{"role": "user", "content": "wait"}]}
    headers = {"authorization": f"Bearer {mesh.key}"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"http://{mesh.http}/v1/chat/completions", json=body, headers=headers, timeout=0.5)
    mesh.run(cancelled.wait())
    # The model was asked to stop: a cancelled call can crash Triton.
    assert mesh.peers.seen.cancelled_calls == before
