"""Calls of functions, with a real engine whose weights are random: what is complete is valid all the same."""

from __future__ import annotations

import json
from typing import Any

import grpc
import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import Response, ResponseFunctionCallArgumentsDeltaEvent
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import model_pb2

from tests.integration.inference.conftest import Builds, InferenceProcess

pytestmark = pytest.mark.real

CITY: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "$defs": {"city": {"enum": ["Berlin", "上海"]}},
}
COLOUR: dict[str, object] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
}
TOOLS: list[ChatCompletionToolParam] = [
    {"type": "function", "function": {"name": "weather", "description": "Forecast", "parameters": CITY}},
    {"type": "function", "function": {"name": "paint", "parameters": COLOUR}},
    {"type": "function", "function": {"name": "now"}},
]
SCHEMAS: dict[str, Any] = {"weather": CITY, "paint": COLOUR, "now": {"type": "object", "maxProperties": 0}}
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def client(inference: InferenceProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{inference.http}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.mark.parametrize("choice", ["required", "weather", "now"])
def test_what_must_be_called_is_called_validly(client: openai.OpenAI, caller: str, choice: str) -> None:
    named: Any = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    called = set()
    for seed in range(6):
        answer = client.chat.completions.create(
            model=caller, messages=ASK, tools=TOOLS, tool_choice=named, temperature=1.5, seed=seed, max_tokens=120
        )
        choice_of, message = answer.choices[0], answer.choices[0].message
        assert (choice_of.finish_reason, message.content) == ("tool_calls", None)
        assert message.tool_calls is not None
        [call] = message.tool_calls
        assert call.type == "function"
        assert call.id.startswith("call_")
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
        called.add(call.function.name)
    assert called <= set(SCHEMAS) if choice == "required" else called == {choice}


def test_a_stream_brings_the_call_in_parts_and_its_result_goes_back(client: openai.OpenAI, caller: str) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "seed": 3, "max_tokens": 120, "tool_choice": "required"}
    whole = client.chat.completions.create(model=caller, messages=ASK, tools=TOOLS, **options)
    chunks = list(client.chat.completions.create(model=caller, messages=ASK, tools=TOOLS, stream=True, **options))
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert whole.choices[0].message.tool_calls is not None
    [call] = whole.choices[0].message.tool_calls
    assert call.type == "function"
    functions = [part.function for part in parts if part.function is not None]
    assert (functions[0].name, "".join(item.arguments or "" for item in functions)) == (
        call.function.name,
        call.function.arguments,
    )
    assert [bool(part.id) for part in parts] == [True] + [False] * (len(parts) - 1)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    talk: list[Any] = [
        *ASK,
        whole.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "20 degrees"},
    ]
    after = client.chat.completions.create(model=caller, messages=talk, tools=TOOLS, tool_choice="none", max_tokens=4)
    assert after.choices[0].finish_reason in ("stop", "length")
    assert after.choices[0].message.tool_calls is None
    assert after.usage is not None
    assert whole.usage is not None
    assert after.usage.prompt_tokens != whole.usage.prompt_tokens


def _response_tools() -> list[Any]:
    return [{"type": "function", **tool["function"]} for tool in TOOLS]


def test_a_response_calls_a_function_whole_and_streamed(client: openai.OpenAI, caller: str) -> None:
    options: dict[str, Any] = {
        "model": caller,
        "input": "hi",
        "tools": _response_tools(),
        "tool_choice": {"type": "function", "name": "weather"},
        "temperature": 1.5,
        "max_output_tokens": 120,
        "extra_body": {"seed": 3},
    }
    whole = client.responses.create(**options)
    Response.model_validate(whole.model_dump(), strict=True)
    [call] = whole.output
    assert call.type == "function_call"
    assert (whole.status, call.status, call.name) == ("completed", "completed", "weather")
    jsonschema.validate(json.loads(call.arguments), CITY)
    events = list(client.responses.create(stream=True, **options))
    for event in events:
        type(event).model_validate(event.model_dump(), strict=True)
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if isinstance(event, ResponseFunctionCallArgumentsDeltaEvent)]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        *["response.function_call_arguments.delta"] * len(deltas),
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert len(deltas) > 1
    assert "".join(deltas) == call.arguments
    # The client's own reader of streams comes to the same.
    options.pop("extra_body")
    with client.responses.stream(**options) as stream:
        final = stream.get_final_response()
    [read] = final.output
    assert read.type == "function_call"
    jsonschema.validate(json.loads(read.arguments), CITY)
    talk: list[Any] = [
        {"role": "user", "content": "hi"},
        call,
        {"type": "function_call_output", "call_id": call.call_id, "output": "20 degrees"},
    ]
    after = client.responses.create(
        model=caller, input=talk, tools=_response_tools(), tool_choice="none", max_output_tokens=4
    )
    assert [item.type for item in after.output] == ["message"]


def test_a_response_that_is_cut_within_its_call_is_incomplete(client: openai.OpenAI, caller: str) -> None:
    options: dict[str, Any] = {"tools": _response_tools(), "tool_choice": {"type": "function", "name": "weather"}}
    cut = client.responses.create(model=caller, input="hi", max_output_tokens=60, extra_body={"seed": 3}, **options)
    Response.model_validate(cut.model_dump(), strict=True)
    assert cut.status == "incomplete"
    [item] = cut.output
    assert item.type == "function_call"
    assert (item.status, item.name) == ("incomplete", "weather")


def test_the_model_decides_where_it_may(inference: InferenceProcess, caller: str) -> None:
    """Whatever it writes is text, or ends with a valid call."""
    tools = [model_pb2.Tool(name="paint", parameters=json.dumps(COLOUR))]
    talk = model_pb2.Conversation(messages=[model_pb2.ChatMessage(role="user", content="hi")])
    for seed in range(6):
        request = pb.GenerateRequest(
            model=f"models/{caller}",
            conversation=talk,
            tools=tools,
            sampling=model_pb2.SamplingParams(temperature=1.5, seed=seed, max_tokens=40),
        )
        answer = inference.stub.Generate(request, timeout=60)
        assert "<tool_call>" not in answer.text
        if answer.finish_reason == model_pb2.FINISH_REASON_TOOL_CALLS:
            jsonschema.validate(json.loads(answer.tool_calls[0].arguments), COLOUR)
        else:
            assert answer.text


def test_what_cannot_be_called_is_refused_by_name(
    inference: InferenceProcess, builds: Builds, client: openai.OpenAI, caller: str
) -> None:
    inference.publish("test-no-tools", builds.writer)
    bad: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}
    schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": COLOUR}}
    tool_message: Any = {"role": "tool", "tool_call_id": "c", "content": "x"}
    refused: list[tuple[str, dict[str, Any], str, str]] = [
        ("test-no-tools", {"tools": TOOLS}, "tools", "has no place for tools"),
        ("test-no-tools", {"messages": [*ASK, tool_message]}, "tools", "has no place for tools"),
        (caller, {"tools": [bad]}, "tools", "f.parameters: must be a schema of an object"),
        (caller, {"tools": [TOOLS[0], TOOLS[0]]}, "tools", "have two of one name"),
        (caller, {"tools": TOOLS, "response_format": schema}, "tools", "together with a JSON schema"),
        (caller, {"tools": TOOLS, "parallel_tool_calls": True}, "parallel_tool_calls", "is not offered"),
        (caller, {"tool_choice": "required"}, "tool_choice", "one of the tools"),
        (caller, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "is required"),
    ]
    for model, changed, param, words in refused:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match=words) as found:
                client.chat.completions.create(**{"model": model, "messages": ASK, "stream": stream, **changed})
            assert found.value.param == param
    returned = {"type": "function_call_output", "call_id": "c", "output": "x"}
    responses: list[dict[str, Any]] = [{"input": [returned]}, {"input": "hi", "tools": _response_tools()}]
    for asked in responses:
        with pytest.raises(openai.BadRequestError, match="has no place for tools") as found:
            client.responses.create(model="test-no-tools", **asked)
        assert found.value.param == "tools"
    request = pb.GenerateRequest(model=f"models/{caller}", text="hi", tools=[model_pb2.Tool(name="f")])
    with pytest.raises(grpc.RpcError, match="go with a conversation"):
        inference.stub.Generate(request, timeout=60)
