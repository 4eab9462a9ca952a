"""Items of `/v1/responses`: messages, calls of functions and what these returned, and the functions themselves.

Source: https://platform.openai.com/docs/guides/function-calling?api-mode=responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, Field, Tag, model_validator
from pydantic import Discriminator as PydanticDiscriminator
from pydantic_core import PydanticCustomError
from tidemill.inference.v1.model_pb2 import ChatMessage, Tool, ToolCall

from gateway.http.bodies import Body, Text, not_offered
from gateway.http.completions import TokenLogprob
from gateway.http.openai import ROLES

# What items of earlier answers have, so that they can be sent back.
_OF_ANSWERS = ("type", "id", "status", "phase", "created_by", "parsed_arguments")


class ContentBody(Body):
    """A piece of a message's text; of an assistant's, as an earlier answer had it."""

    type: Literal["input_text", "output_text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("type") not in ("input_text", "output_text"):
            raise PydanticCustomError("part", "is not a text part; only text is offered by this server")
        return {name: value[name] for name in value if name not in ("annotations", "logprobs")}


_Content = Annotated[
    Annotated[Text, Tag("~text")] | Annotated[list[ContentBody], Tag("~parts")],
    PydanticDiscriminator(
        lambda value: "~parts" if isinstance(value, list) else "~text" if isinstance(value, str) else None,
        custom_error_type="content",
        custom_error_message="must be a string or a list of text parts",
    ),
]


def _text_of(content: str | Sequence[ContentBody]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _without(value: Any, names: Sequence[str]) -> Any:
    return {name: value[name] for name in value if name not in names} if isinstance(value, dict) else value


class InputMessageBody(Body):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: _Content

    @model_validator(mode="before")
    @classmethod
    def _is_message(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise PydanticCustomError("object", "must be an object with `role` and `content`")
        if (kind := value.get("type", "message")) != "message":
            raise not_offered("type", f"{str(kind)[:40]}; messages, and calls of functions, are read")
        return _without(value, _OF_ANSWERS)

    @property
    def text(self) -> str:
        """Its whole text."""
        return _text_of(self.content)


class FunctionCallBody(Body):
    """A call of a function, as an earlier answer had it."""

    call_id: Text = Field(min_length=1)
    name: Text
    arguments: Text = Field(description="a JSON object, as text")

    @model_validator(mode="before")
    @classmethod
    def _is_call(cls, value: Any) -> Any:
        return _without(value, _OF_ANSWERS)


class CallOutputBody(Body):
    """What a function returned."""

    call_id: Text = Field(min_length=1, description="of the call that it answers")
    output: _Content

    @model_validator(mode="before")
    @classmethod
    def _is_output(cls, value: Any) -> Any:
        return _without(value, _OF_ANSWERS)


def _kind(value: Any) -> str:
    kinds = {"function_call": "~call", "function_call_output": "~output"}
    kind = value.get("type") if isinstance(value, dict) else None
    # A message's own check names what is none of them.
    return kinds.get(kind, "~message") if isinstance(kind, str) else "~message"


Item = Annotated[
    Annotated[InputMessageBody, Tag("~message")]
    | Annotated[FunctionCallBody, Tag("~call")]
    | Annotated[CallOutputBody, Tag("~output")],
    PydanticDiscriminator(_kind),
]


class FunctionToolBody(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: Text = Field(examples=["get_weather"])
    description: Text = ""
    parameters: dict[str, Any] = Field({}, description="JSON schema of its arguments, an object")
    strict: bool = Field(True, description="the schema is followed either way")

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("type", "function") != "function":
            raise not_offered("type", f"{str(value['type'])[:40]}; tools are functions")
        return value

    @property
    def tool(self) -> Tool:
        """It, in the contract's form."""
        schema = orjson.dumps(self.parameters).decode() if self.parameters else ""
        return Tool(name=self.name, description=self.description, parameters=schema)


class NamedFunctionBody(Body):
    """The function that is to be called."""

    type: Literal["function"]
    name: str


Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("~word")] | Annotated[NamedFunctionBody, Tag("~function")],
    PydanticDiscriminator(
        lambda value: "~function" if isinstance(value, dict) else "~word" if isinstance(value, str) else None,
        custom_error_type="choice",
        custom_error_message="must be none, auto, required, or a function with `type` and `name`",
    ),
]


@dataclass(frozen=True, slots=True)
class ConversationItem:
    """A message of the conversation, and the parts of the request that it was made of."""

    message: ChatMessage
    place: str
    calls: list[str] = field(default_factory=list)
    """Of each call of a function."""

    def sent_name(self, rest: str) -> str:
        """The name under which the caller sent a field of the message, such as `.content`."""
        if not self.place.endswith("]"):
            return self.place
        for number, place in enumerate(self.calls):
            if rest.startswith(head := f".tool_calls[{number}]"):
                inner = rest.removeprefix(head)
                return place + (".call_id" if inner == ".id" else inner)
        if self.message.role == "tool":
            return self.place + {".content": ".output", ".tool_call_id": ".call_id"}.get(rest, rest)
        return self.place + rest


def turns_of(
    instructions: str, given: str | Sequence[InputMessageBody | FunctionCallBody | CallOutputBody]
) -> list[ConversationItem]:
    """The conversation. Calls of functions belong to the assistant's message before them, as in chat completions."""
    turns = [ConversationItem(ChatMessage(role="system", content=instructions), "instructions")] if instructions else []
    if isinstance(given, str):
        return [*turns, ConversationItem(ChatMessage(role="user", content=given), "input")]
    for number, item in enumerate(given):
        place = f"input[{number}]"
        match item:
            case InputMessageBody():
                turns.append(ConversationItem(ChatMessage(role=ROLES[item.role], content=item.text), place))
            case CallOutputBody():
                output = ChatMessage(role="tool", content=_text_of(item.output), tool_call_id=item.call_id)
                turns.append(ConversationItem(output, place))
            case FunctionCallBody():
                if not turns or turns[-1].message.role != "assistant":
                    turns.append(ConversationItem(ChatMessage(role="assistant"), place))
                call = ToolCall(id=item.call_id, name=item.name, arguments=item.arguments)
                turns[-1].message.tool_calls.append(call)
                turns[-1].calls.append(place)
    return turns


class OutputText(BaseModel):
    """A text of the answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[None] = []
    logprobs: list[TokenLogprob] = []


class OutputMessage(BaseModel):
    """The assistant's message."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class OutputCall(BaseModel):
    """A call of a function. `arguments` is a JSON object, unless the call is incomplete."""

    id: str
    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    arguments: str
    status: Literal["in_progress", "completed", "incomplete"]
