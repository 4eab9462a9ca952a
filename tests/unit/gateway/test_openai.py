"""OpenAI's dialect: what is read, what is refused, what is written."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill.inference.v1.inference_service_pb2 import StreamGenerateResponse
from tidemill.inference.v1.model_pb2 import FINISH_REASON_LENGTH, Usage

from gateway.http.openai import ChatCall, ChatEvents
from gateway.http.openai import read_chat as read_chat_of
from services.kit.errors import InvalidArgumentError, NotFoundError

ASK: dict[str, Any] = {"model": "headlines", "messages": [{"role": "user", "content": "Hi"}]}


def read_chat(value: dict[str, Any], template: str = "") -> ChatCall:
    """Of a model with this prompt."""
    return read_chat_of(value, lambda _: template)


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]


@pytest.mark.parametrize(
    ("messages", "template", "option", "applied"),
    [
        (TURNS[:1], "Sum up: {text}", None, True),
        (TURNS[:1], "Sum up: {text}", False, False),
        (TURNS[:1], "", None, False),
        (TURNS, "Sum up: {text}", None, False),
        ([{"role": "system", "content": "a"}], "Sum up: {text}", None, False),
        ([{"role": "user", "content": ""}], "Sum up: {text}", None, False),
    ],
)
def test_one_user_message_is_wrapped_into_the_prompt_of_the_training(
    messages: list[Any], template: str, option: bool | None, applied: bool
) -> None:
    call = read_chat({"model": "m", "messages": messages, "apply_prompt_template": option}, template)
    assert call.whole()[0].HasField("text") == call.streamed()[0].HasField("text") == applied


def test_nothing_given_is_greedy_and_without_a_limit() -> None:
    call = read_chat(ASK)
    assert (call.sampling.temperature, call.sampling.top_p, call.sampling.max_tokens) == (0.0, 1.0, 0)
    assert not call.sampling.HasField("seed")
    assert call.whole()[0].conversation.messages[0].content == "Hi"
    assert call.streamed()[0].model == "models/headlines"


@pytest.mark.parametrize(
    "harmless",
    [
        {"n": 1},
        {"tools": []},
        {"tool_choice": "none"},
        {"logprobs": False},
        {"response_format": {"type": "text"}},
        {"presence_penalty": 0},
        {"frequency_penalty": 0.0},
        {"logit_bias": {}},
        {"user": "u"},
        {"metadata": {"a": "b"}},
        {"stop": None},
        {"max_tokens": 5, "max_completion_tokens": 5},
        {"seed": -1},
        {"stream_options": None},
    ],
)
def test_what_changes_nothing_is_taken(harmless: dict[str, Any]) -> None:
    assert read_chat(ASK | harmless).model == "headlines"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"n": 9}, "n"),
        ({"tools": [{}]}, "tools[0].type"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}},
            "response_format.json_schema",
        ),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"top_k": -1}, "top_k"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a"] * 9}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options"),
        ({"model": 3}, "model"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]}, "messages[0].tool_calls[0]"),
        (
            {"messages": [{"role": "system", "content": "x"}] * 2, "apply_prompt_template": True},
            "apply_prompt_template",
        ),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidArgumentError) as found:
        read_chat(ASK | wrong)
    assert found.value.violations[0].field == param
    assert param.partition("[")[0] in found.value.message


def test_the_form_of_an_answer_and_its_penalties_are_passed_on() -> None:
    schema = {"type": "object", "properties": {"ü": {"type": "null"}}}
    named = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    call = read_chat(ASK | {"response_format": named, "top_k": 4, "frequency_penalty": 1, "logprobs": True})
    assert json.loads(call.sampling.json_schema) == schema
    assert (call.sampling.top_k, call.sampling.frequency_penalty, call.sampling.logprobs) == (4, 1.0, True)
    assert json.loads(read_chat(ASK | {"response_format": {"type": "json_object"}}).sampling.json_schema) == {
        "type": "object"
    }


def test_several_answers_differ_by_their_seeds() -> None:
    seeds = [request.sampling.seed for request in read_chat(ASK | {"n": 3, "seed": 7}).whole()]
    assert seeds == [7, 8, 9]
    assert not any(request.sampling.HasField("seed") for request in read_chat(ASK | {"n": 2}).whole())


@pytest.mark.parametrize("model", ["GPT-4", "a b", "", "models/", "x" * 65, "../x"])
def test_a_name_that_no_model_can_have_is_not_found(model: str) -> None:
    with pytest.raises(NotFoundError):
        read_chat(ASK | {"model": model})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["model", "messages", "stop", "n", "tools", "seed", "stream", "stream_options", "top_p"]), _JSON
    )
)
def test_any_json_is_read_or_refused_in_order(body: dict[str, Any]) -> None:
    for whole in (body, ASK | body):
        with contextlib.suppress(InvalidArgumentError, NotFoundError):
            read_chat(whole)


def test_chunks_are_events_with_one_identity() -> None:
    chunks = ChatEvents(read_chat(ASK | {"stream": True, "stream_options": {"include_usage": True}}), 1)
    usage = Usage(prompt_tokens=2, completion_tokens=3)
    first = StreamGenerateResponse(answer="answers/a", model_version="models/m/versions/1", text_delta="zwei\n\nZeilen")
    last = StreamGenerateResponse(answer="answers/a", finish_reason=FINISH_REASON_LENGTH, usage=usage)
    steps = (chunks.begin(0, first), chunks.piece(0, first), chunks.piece(0, last), chunks.finish(0, last))
    *events, done = [event for step in (*steps, chunks.end([usage])) for event in step]
    assert done == b"data: [DONE]\n\n"
    for event in events:
        assert event.startswith(b"data: ")
        assert event.endswith(b"\n\n")
        assert event.count(b"\n") == 2
    values = [json.loads(event[6:]) for event in events]
    assert {value["id"] for value in values} == {"answers/a"}
    assert values[1]["choices"][0]["delta"]["content"] == "zwei\n\nZeilen"
    assert values[2]["choices"][0]["finish_reason"] == "length"
    assert values[3]["usage"]["total_tokens"] == 5
    assert values[0]["usage"] is None


@pytest.mark.parametrize("message", [{"role": "assistant", "content": None}, {"role": "assistant"}])
def test_an_assistant_message_needs_no_content(message: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "a"}, message, {"role": "user", "content": "b", "name": "ann"}]
    call = read_chat({"model": "m", "messages": messages})
    assert [said.content for said in call.conversation.messages] == ["a", "", "b"]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": "a", "weight": 1}, "messages[0].weight"),
        ({"role": "assistant", "content": None, "tool_calls": [{}]}, "messages[0].tool_calls[0].id"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "size": 1}]}, "messages[0].content[0].size"),
        ({"role": "user", "content": [{"type": "text", "text": "a\0"}]}, "messages[0].content[0].text"),
    ],
)
def test_what_is_wrong_inside_a_message_is_named(message: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_chat({"model": "m", "messages": [message]})
    assert caught.value.violations[0].field == field
