"""The official `openai` package's `completions` against the gateway, unchanged."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types import Completion
from tidemill.inference.v1.model_pb2 import TokenLogprob

from gateway.http.text_completions import logprobs_of
from tests.integration.gateway.conftest import Mesh
from tests.integration.gateway.fake_peers import ANSWER, VERSION, WORDS

TEXT = "".join(WORDS)


@pytest.fixture
def client(mesh: Mesh) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{mesh.http}/v1", api_key=mesh.key, max_retries=0)


def test_a_text_with_all_options(mesh: Mesh, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="headlines",
        prompt="An article.",
        max_tokens=12,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop="\n",
        presence_penalty=0.5,
        best_of=1,
        suffix="",
        user="ann",
    )
    assert (answer.id, answer.object, answer.system_fingerprint) == (ANSWER, "text_completion", VERSION)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (TEXT, "stop", None)
    assert choice.model_extra == {"answer": ANSWER, "truncated": False}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 3, 10)
    Completion.model_validate(answer.model_dump(), strict=True)
    request = mesh.peers.seen.requests[-1]
    assert request.text == "An article."
    assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.seed) == (12, 0.5, 7)
    assert (list(request.sampling.stop), request.sampling.presence_penalty) == (["\n"], 0.5)
    client.completions.create(model="headlines", prompt="a", extra_body={"apply_prompt_template": False})
    assert [turn.content for turn in mesh.peers.seen.requests[-1].conversation.messages] == ["a"]


def test_several_prompts_have_several_texts_each(mesh: Mesh, client: openai.OpenAI) -> None:
    before = len(mesh.peers.seen.requests)
    answer = client.completions.create(model="headlines", prompt=["one ", "two "], n=2, echo=True, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [f"one {TEXT}"] * 2 + [f"two {TEXT}"] * 2
    asked = [(request.text, request.sampling.seed) for request in mesh.peers.seen.requests[before:]]
    assert sorted(asked) == [("one ", 3), ("one ", 4), ("two ", 3), ("two ", 4)]
    # Each prompt counts once.
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (14, 12)


def test_log_probabilities_in_the_old_form(client: openai.OpenAI) -> None:
    for wanted, top in ((0, None), (1, [{word: -0.5} for word in WORDS])):
        [choice] = client.completions.create(model="headlines", prompt="a", logprobs=wanted).choices
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == list(WORDS)
        assert choice.logprobs.token_logprobs == [-0.5] * 3
        assert choice.logprobs.text_offset == [0, 6, 11]
        assert choice.logprobs.top_logprobs == top
    streamed = client.completions.create(model="headlines", prompt="a", logprobs=0, stream=True)
    found = [chunk.choices[0].logprobs for chunk in streamed]
    assert [item.text_offset for item in found if item is not None] == [[0], [6], [11]]


def test_streamed_texts(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="headlines",
            prompt=["one ", "two "],
            echo=True,
            max_tokens=9,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert {chunk.id for chunk in chunks} == {ANSWER}
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (14, 6)
    for index, prompt in enumerate(("one ", "two ")):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
        assert "".join(choice.text for choice in own) == prompt + TEXT
        assert own[-1].finish_reason == "stop"
    with pytest.raises(openai.APIError, match="failed unexpectedly"):
        list(client.completions.create(model="headlines", prompt="break", stream=True))


def test_tokens_that_are_part_of_a_character_stand_where_it_does() -> None:
    def offsets(text: str, *tokens: str) -> list[int]:
        return logprobs_of(text, [TokenLogprob(token=token) for token in tokens], 10, top=False).text_offset

    assert offsets("a🙂 b", "a", "\ufffd", "\ufffd", " ", "b") == [10, 11, 11, 12, 13]
    assert offsets("aba", "a", "<end>", "b", "a") == [10, 11, 11, 12]


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", "b\0"]}, "prompt[1]"),
        ({"prompt": ["a", "x" * 600_000]}, "prompt[1]"),
        ({"prompt": ["a"] * 33, "n": 2}, "n"),
        ({"n": 9}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"logprobs": 2}, "logprobs"),
        ({"logprobs": 1, "temperature": 1.0}, "logprobs"),
        ({"logprobs": 0, "echo": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"no_such_option": 1}, "no_such_option"),
    ],
)
def test_what_is_not_offered_or_wrong_is_refused_by_name(
    client: openai.OpenAI, changed: dict[str, Any], param: str
) -> None:
    body: dict[str, Any] = {"prompt": "a", **changed}
    with pytest.raises(openai.BadRequestError) as found:
        client.completions.create(model="headlines", prompt=body.pop("prompt"), extra_body=body)
    assert found.value.param == param
    assert found.value.code == "invalid_field"


def test_unknown_model(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as found:
            client.completions.create(model="nothing", prompt="a", stream=stream)
        assert (found.value.code, found.value.param) == ("model_not_found", "model")
