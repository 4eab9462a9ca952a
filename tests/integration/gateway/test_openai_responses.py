"""The official `openai` package's `responses` against the gateway, unchanged."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseTextDeltaEvent
from pydantic import BaseModel

from tests.integration.gateway.conftest import Mesh
from tests.integration.gateway.fake_peers import ANSWER, VERSION, WORDS

TEXT = "".join(WORDS)
TOOLS: list[Any] = [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]
CALL: dict[str, Any] = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}
RESULT: dict[str, Any] = {"type": "function_call_output", "call_id": "c", "output": "20 degrees"}


@pytest.fixture
def client(mesh: Mesh) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{mesh.http}/v1", api_key=mesh.key, max_retries=0)


def test_a_whole_response(mesh: Mesh, client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="headlines",
        instructions="Be short.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": "An article."},
        ],
        max_output_tokens=12,
        temperature=0.5,
        top_p=0.9,
        include=["message.output_text.logprobs"],
        metadata={"job": "7"},
        store=False,
        user="ann",
    )
    assert (answer.id, answer.output_text, answer.status) == (ANSWER, TEXT, "completed")
    assert (answer.instructions, answer.metadata, answer.max_output_tokens) == ("Be short.", {"job": "7"}, 12)
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (7, 3, 10)
    [message] = answer.output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert [token.token for token in part.logprobs or ()] == list(WORDS)
    assert answer.model_extra is not None
    assert (answer.model_extra["model_version"], answer.model_extra["truncated"]) == (VERSION, False)
    # What came back is valid for the client's own strict types, and can be sent again.
    Response.model_validate(answer.model_dump(), strict=True)
    request = mesh.peers.seen.requests[-1]
    assert [(turn.role, turn.content) for turn in request.conversation.messages] == [
        ("system", "Be short."),
        ("user", "Hi"),
        ("assistant", "Yes?"),
        ("user", "An article."),
    ]
    assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.top_p) == (12, 0.5, 0.9)
    again: Any = [*answer.output, {"role": "user", "content": "And?"}]
    assert client.responses.create(model="headlines", input=again).output_text == TEXT
    assert mesh.peers.seen.requests[-1].conversation.messages[0].content == TEXT


def test_one_text_is_put_into_the_prompt_of_the_training(mesh: Mesh, client: openai.OpenAI) -> None:
    for given in ("An article.", [{"role": "user", "content": "An article."}]):
        client.responses.create(model="headlines", input=given)  # type: ignore[arg-type]
        assert mesh.peers.seen.requests[-1].text == "An article."
    client.responses.create(model="headlines", input="An article.", extra_body={"apply_prompt_template": False})
    assert [turn.content for turn in mesh.peers.seen.requests[-1].conversation.messages] == ["An article."]


def test_a_streamed_response_has_the_official_events(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="headlines", input="An article.", max_output_tokens=9, stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.delta for event in events if isinstance(event, ResponseTextDeltaEvent)] == list(WORDS)
    for event in events:
        type(event).model_validate(event.model_dump(), strict=True)
    with client.responses.stream(model="headlines", input="An article.", max_output_tokens=9) as stream:
        assert stream.get_final_response().output_text == TEXT
    # The answer of the fake is cut unless it has a limit.
    last = list(client.responses.create(model="headlines", input="An article.", stream=True))[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == TEXT
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"


def test_a_stream_that_breaks_ends_with_a_failed_response(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="headlines", input="break", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert "failed unexpectedly" in events[-1].response.error.message


def test_calls_and_what_they_returned_become_the_conversation(mesh: Mesh, client: openai.OpenAI) -> None:
    said: Any = {"role": "assistant", "content": [{"type": "output_text", "text": "I will look.", "annotations": []}]}
    again = {**RESULT, "output": [{"type": "input_text", "text": "20 "}, {"type": "input_text", "text": "degrees"}]}
    talk: list[Any] = [{"role": "user", "content": "hi"}, said, {**CALL, "id": "fc_1", "status": "completed"}, again]
    answer = client.responses.create(
        model="headlines", instructions="Be short.", input=talk, tools=TOOLS, tool_choice="none", max_output_tokens=9
    )
    assert answer.output_text == TEXT
    assert (answer.tool_choice, [tool.model_dump()["name"] for tool in answer.tools]) == ("none", ["weather"])
    Response.model_validate(answer.model_dump(), strict=True)
    system, user, assistant, tool = mesh.peers.seen.requests[-1].conversation.messages
    assert (system.role, user.content) == ("system", "hi")
    assert assistant.content == "I will look."
    assert [(call.id, call.name, call.arguments) for call in assistant.tool_calls] == [("c", "weather", "{}")]
    assert (tool.role, tool.tool_call_id, tool.content) == ("tool", "c", "20 degrees")
    # With functions a single message stays a conversation, as in chat completions.
    client.responses.create(model="headlines", input="hi", tools=TOOLS)
    assert [turn.content for turn in mesh.peers.seen.requests[-1].conversation.messages] == ["hi"]


class Headline(BaseModel):
    title: str


def test_a_schema_is_passed_on_and_one_that_is_not_covered_refused(mesh: Mesh, client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    client.responses.create(model="headlines", input="a", text=form)
    assert '"properties"' in mesh.peers.seen.requests[-1].sampling.json_schema
    # The client makes the schema of a class itself; the fake does not answer with JSON, so it reports that.
    with pytest.raises(ValueError, match="Invalid JSON"):
        client.responses.parse(model="headlines", input="a", text_format=Headline)
    assert '"title"' in mesh.peers.seen.requests[-1].sampling.json_schema
    schema["properties"] = {"a": {"type": "string", "pattern": "x"}}
    with pytest.raises(openai.BadRequestError) as found:
        client.responses.create(model="headlines", input="a", text=form)
    assert found.value.param == "text.format"


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "f", "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": TOOLS, "parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": TOOLS, "include": ["message.output_text.logprobs"]}, "include"),
        ({"tools": TOOLS, "apply_prompt_template": True}, "apply_prompt_template"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": [], "mode": "auto"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": 3}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "fly"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "fly"}}, "tool_choice"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "array"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"temperature": 3}, "temperature"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0].type"),
        ({"input": [{"type": ["function_call"], "name": "f"}]}, "input[0].type"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f" * 65, "arguments": "{}"}]},
            "input[0].name",
        ),
        ({"input": [CALL, {**CALL, "call_id": "c" * 129}]}, "input[1].call_id"),
        ({"input": [CALL, {**RESULT, "output": "x" * 600_000}]}, "input[1].output"),
        ({"input": [CALL, {**RESULT, "output": [{"type": "input_image"}]}]}, "input[1].output[0]"),
        ({"input": [CALL, {**RESULT, "call_id": "c" * 129}], "instructions": "a"}, "input[1].call_id"),
        ({"input": "a\0b"}, "input"),
        ({"input": "x" * 600_000}, "input"),
        ({"input": [{"role": "user", "content": "x" * 600_000}], "instructions": "a"}, "input[0].content"),
        ({"instructions": "x" * 600_000}, "instructions"),
    ],
)
def test_what_is_not_offered_or_wrong_is_refused_by_name(
    client: openai.OpenAI, changed: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.responses.create(model="headlines", input=changed.pop("input", "a"), extra_body=changed)
    assert found.value.param == param
    assert found.value.code in ("invalid_field", "invalid_schema")


def test_unknown_model(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as found:
            client.responses.create(model="nothing", input="a", stream=stream)
        assert (found.value.code, found.value.param) == ("model_not_found", "model")
