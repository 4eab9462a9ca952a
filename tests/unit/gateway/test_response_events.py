"""Events of a streamed response, as the official client's types read them, for answers that a test makes up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter
from tidemill.inference.v1.inference_service_pb2 import GenerateResponse, StreamGenerateResponse
from tidemill.inference.v1.model_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    ToolCall,
    Usage,
)

from gateway.http.responses import ResponseCall, ResponseEvents, read_response

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
USAGE = Usage(prompt_tokens=2, completion_tokens=3)
SAID = [StreamGenerateResponse(text_delta="I will "), StreamGenerateResponse(text_delta="look.")]
CALLED = [
    StreamGenerateResponse(tool_calls=[ToolCall(id="call_1", name="weather")]),
    StreamGenerateResponse(tool_calls=[ToolCall(arguments='{"city": ')]),
    StreamGenerateResponse(tool_calls=[ToolCall(arguments='"Oslo"}')]),
]
MESSAGE = ["output_item.added", "content_part.added", "output_text.delta", "output_text.delta"]
MESSAGE_END = ["output_text.done", "content_part.done", "output_item.done"]
CALL = ["output_item.added", *["function_call_arguments.delta"] * 2]
CALL_END = ["function_call_arguments.done", "output_item.done"]


def _call() -> ResponseCall:
    return read_response({"model": "m", "input": "a", "tools": [{"type": "function", "name": "weather"}]}, lambda _: "")


def _events(pieces: Sequence[StreamGenerateResponse], finish: Any) -> list[Any]:
    last = StreamGenerateResponse(finish_reason=finish, usage=USAGE)
    events = ResponseEvents(_call(), 1)
    parts = [*events.begin(0, (*pieces, last)[0])]
    for piece in (*pieces, last):
        parts += events.piece(0, piece)
    parts += [*events.finish(0, last), *events.end([USAGE])]
    found = [EVENTS.validate_python(orjson.loads(part.partition(b"data: ")[2])) for part in parts]
    assert [event.sequence_number for event in found] == list(range(len(found)))
    return found


@pytest.mark.parametrize(
    ("pieces", "finish", "kinds", "end"),
    [
        (SAID, FINISH_REASON_STOP, [*MESSAGE, *MESSAGE_END], "completed"),
        (CALLED, FINISH_REASON_TOOL_CALLS, [*CALL, *CALL_END], "completed"),
        (SAID + CALLED, FINISH_REASON_TOOL_CALLS, [*MESSAGE, *MESSAGE_END, *CALL, *CALL_END], "completed"),
        (SAID + CALLED[:2], FINISH_REASON_LENGTH, [*MESSAGE, *MESSAGE_END, *CALL[:-1], *CALL_END], "incomplete"),
        ([], FINISH_REASON_LENGTH, [*MESSAGE[:2], *MESSAGE_END], "incomplete"),
    ],
)
def test_items_follow_one_another(pieces: Any, finish: Any, kinds: list[str], end: str) -> None:
    found = _events(pieces, finish)
    assert [event.type.removeprefix("response.") for event in found] == ["created", "in_progress", *kinds, end]
    last = found[-1].response
    ended = [event.item for event in found if event.type == "response.output_item.done"]
    assert [item.model_dump() for item in ended] == [item.model_dump() for item in last.output]
    assert [item.status for item in last.output] == ["completed"] * (len(last.output) - 1) + [end]
    # The same as the whole answer, but for the ids of its items.
    called = [call for piece in pieces for call in piece.tool_calls]
    calls = [ToolCall(id=c.id, name=c.name, arguments="".join(c.arguments for c in called)) for c in called[:1]]
    text = "".join(piece.text_delta for piece in pieces)
    whole = _call().complete(GenerateResponse(text=text, tool_calls=calls, finish_reason=finish, usage=USAGE), 1)
    shown = [{**item.model_dump(), "id": ""} for item in whole.output]
    assert [{**item.to_dict(), "id": ""} for item in last.output] == shown
    for event in found:
        if "delta" in event.type:
            assert event.item_id == ended[event.output_index].id
