"""OpenAI's chat dialect to the inference service's messages and back. It makes no call.

Source: https://platform.openai.com/docs/api-reference/chat. What the mesh does not do is refused by name rather than
ignored; without `temperature` the most probable tokens are taken. One option is ours: `apply_prompt_template`
wraps a single user message into the prompt that the model was trained on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson
from tidemill.inference.v1.inference_service_pb2 import GenerateRequest, GenerateResponse, StreamGenerateRequest
from tidemill.inference.v1.model_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    ChatMessage,
    Conversation,
    Model,
    SamplingParams,
    Usage,
)

from gateway.http.calls import flag_field, integer_field, invalid, number_field, refuse_unknown, text_field
from services.kit.errors import FieldViolation, InvalidArgumentError, NotFoundError

_MODEL = re.compile(r"^[a-z0-9][a-z0-9-]{0,63}$")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_FINISH: dict[int, str] = {FINISH_REASON_STOP: "stop", FINISH_REASON_LENGTH: "length"}
_INT32 = 131072
_INT64 = 2**63 - 1

_USED = frozenset(
    {
        "model",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "apply_prompt_template",
    }
)
# They do not change the answer.
_WITHOUT_EFFECT = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier"})
# Options that the mesh does not offer, with the values that mean "not wanted".
_REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "store": (False,),
}
_MESSAGE_REFUSED = frozenset({"tool_calls", "function_call", "audio"})
# `name` tells speakers apart, and the others come back from an answer; none of them changes what is written.
_MESSAGE = _MESSAGE_REFUSED | {"role", "content", "name", "refusal", "annotations"}
_KNOWN = _USED | _WITHOUT_EFFECT | _REFUSED.keys()


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A request that was read."""

    model: str
    """The id as callers write it, such as `headlines`."""
    conversation: Conversation
    sampling: SamplingParams
    stream: bool
    include_usage: bool
    apply_prompt_template: bool

    def whole(self) -> GenerateRequest:
        """Asks for the whole answer."""
        request = GenerateRequest(model=f"models/{self.model}", sampling=self.sampling)
        if self.apply_prompt_template:
            request.text = self.conversation.messages[0].content
        else:
            request.conversation.CopyFrom(self.conversation)
        return request

    def streamed(self) -> StreamGenerateRequest:
        """Asks for the answer piece by piece."""
        request = StreamGenerateRequest(model=f"models/{self.model}", sampling=self.sampling)
        if self.apply_prompt_template:
            request.text = self.conversation.messages[0].content
        else:
            request.conversation.CopyFrom(self.conversation)
        return request


def model_id(name: str) -> str:
    """The id of a model without `models/`.

    Raises:
        NotFoundError: no model can have this name.
    """
    short = name.removeprefix("models/")
    if not _MODEL.match(short):
        raise model_not_found(short)
    return short


def model_not_found(name: str) -> NotFoundError:
    """The error for a model that does not answer."""
    return NotFoundError(
        f"The model `{name[:64]}` does not exist or has no serving version; GET /v1/models lists those that answer.",
        reason="MODEL_NOT_FOUND",
        violations=[FieldViolation("model", "no such model")],
    )


def as_sent(error: InvalidArgumentError, call: ChatCall) -> InvalidArgumentError:
    """What the service says of a request, with the fields as the caller sent them."""
    names = {"text": "messages[0].content"} if call.apply_prompt_template else {}
    found = []
    for violation in error.violations:
        name = violation.field.removeprefix("conversation.").removeprefix("sampling.")
        found.append(FieldViolation(names.get(name, name), violation.description))
    told = "; ".join(f"`{item.field}`: {item.description}" for item in found)
    # A service that says more than the rules of the contract says it in its message.
    message = told if error.reason == "INVALID_FIELD" and found else error.message
    return InvalidArgumentError(message, reason=error.reason, metadata=error.metadata, violations=found)


def read_chat(body: dict[str, Any]) -> ChatCall:
    """Reads the body of a chat completion.

    Raises:
        InvalidArgumentError: names the first parameter that is wrong, unknown or not offered.
        NotFoundError: the model's name is none.
    """
    refuse_unknown(body, _KNOWN)
    for name, harmless in _REFUSED.items():
        value = body.get(name)
        if value is not None and value not in harmless:
            raise invalid(name, f"`{name}` is not offered by this server.")
    model = text_field(body, "model", required=True)
    messages = _messages(body)
    template = flag_field(body, "apply_prompt_template")
    if template and (len(messages) != 1 or messages[0].role != "user"):
        raise invalid("apply_prompt_template", "`apply_prompt_template` needs exactly one message, the user's.")
    stream = flag_field(body, "stream")
    return ChatCall(
        model=model_id(model),
        conversation=Conversation(messages=messages),
        sampling=_sampling(body),
        stream=stream,
        include_usage=_include_usage(body, stream),
        apply_prompt_template=template,
    )


def _messages(body: dict[str, Any]) -> list[ChatMessage]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", "`messages` must be a list of at least one message.")
    found = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise invalid(where, f"`{where}` must be an object with `role` and `content`.")
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise invalid(f"{where}.role", f"`{where}.role` must be one of {', '.join(_ROLES)}; it is {role!r}.")
        for name, value in message.items():
            if name in _MESSAGE_REFUSED and value:
                raise invalid(f"{where}.{name}", f"`{where}.{name}` is not offered by this server.")
            if name not in _MESSAGE:
                raise invalid(f"{where}.{name}", f"Unrecognized request argument supplied: {where}.{name}")
        content = message.get("content")
        # What an assistant said by a tool call has no text; clients send such a message without its content.
        text = "" if content is None and role == "assistant" else _content(content, where)
        found.append(ChatMessage(role=_ROLES[role], content=text))
    return found


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return _text(content, f"{where}.content")
    if not isinstance(content, list):
        raise invalid(f"{where}.content", f"`{where}.content` must be a string or a list of text parts.")
    texts = []
    for index, part in enumerate(content):
        name = f"{where}.content[{index}]"
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise invalid(name, f"`{name}` is not a text part; only text is offered by this server.")
        if unknown := part.keys() - {"type", "text"}:
            raise invalid(f"{name}.{min(unknown)}", f"Unrecognized request argument supplied: {name}.{min(unknown)}")
        texts.append(_text(part["text"], f"{name}.text"))
    return "".join(texts)


def _text(text: str, where: str) -> str:
    # The runtimes' tokenizers take it for the end of the text.
    if "\0" in text:
        raise invalid(where, f"`{where}` has a NUL character (U+0000); remove it.")
    return text


def _sampling(body: dict[str, Any]) -> SamplingParams:
    limits = {name: integer_field(body, name, 1, _INT32) for name in ("max_tokens", "max_completion_tokens")}
    given = {value for value in limits.values() if value is not None}
    if len(given) > 1:
        raise invalid("max_tokens", "`max_tokens` and `max_completion_tokens` differ; give one of them.")
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop if stop is not None else []
    if (
        not isinstance(stops, list)
        or len(stops) > 8
        or not all(isinstance(s, str) and 0 < len(s) <= 256 for s in stops)
    ):
        raise invalid("stop", "`stop` must be a string or up to 8 strings of 1 to 256 characters.")
    top_p = number_field(body, "top_p", 1.0, 0.0, 1.0)
    if top_p == 0.0:
        raise invalid("top_p", "`top_p` must be greater than 0.")
    return SamplingParams(
        max_tokens=given.pop() if given else 0,
        temperature=number_field(body, "temperature", 0.0, 0.0, 2.0),
        top_p=top_p,
        seed=integer_field(body, "seed", -_INT64 - 1, _INT64),
        stop=stops,
    )


def _include_usage(body: dict[str, Any], stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise invalid("stream_options", "`stream_options` is for `stream: true` only.")
    if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise invalid("stream_options", "`stream_options` must be an object with `include_usage`.")
    return flag_field(options, "include_usage")


def usage_json(usage: Usage) -> dict[str, int]:
    """What a request cost."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def completion_json(response: GenerateResponse, model: str, created: int) -> dict[str, Any]:
    """A whole answer. Its id is the answer's name, which feedback refers to; its fingerprint is the model version."""
    return {
        "id": response.answer,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": response.model_version,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": response.text, "refusal": None},
                "logprobs": None,
                "finish_reason": _FINISH.get(response.finish_reason, "stop"),
            }
        ],
        "usage": usage_json(response.usage),
    }


class ChunkWriter:
    """Renders the events of one streamed answer (server-sent events, https://html.spec.whatwg.org/#server-sent-events)."""

    DONE = b"data: [DONE]\n\n"

    def __init__(self, answer: str, model_version: str, model: str, created: int, include_usage: bool) -> None:
        self._head = {
            "id": answer,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "system_fingerprint": model_version,
        }
        self._tail: dict[str, Any] = {"usage": None} if include_usage else {}

    def role(self) -> bytes:
        """The first event."""
        return self._event({"role": "assistant", "content": ""}, None)

    def text(self, delta: str) -> bytes:
        """A piece of the answer."""
        return self._event({"content": delta}, None)

    def finish(self, reason: int) -> bytes:
        """The end of the answer."""
        return self._event({}, _FINISH.get(reason, "stop"))

    def usage(self, usage: Usage) -> bytes:
        """The event that follows the answer where `include_usage` asked for it."""
        return _data({**self._head, "choices": [], "usage": usage_json(usage)})

    def _event(self, delta: dict[str, Any], finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _data({**self._head, "choices": [choice], **self._tail})


def _data(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def error_event(body: dict[str, Any]) -> bytes:
    """An error in the middle of a stream, as OpenAI's clients expect it."""
    return _data(body)


def model_json(model: Model) -> dict[str, Any]:
    """A model that answers, with the version behind it."""
    serving = model.serving
    return {
        "id": model.name.removeprefix("models/"),
        "object": "model",
        "created": model.create_time.seconds,
        "owned_by": "tidemill",
        "version": serving.name,
        "task": serving.task,
        "precision": serving.precision,
        "labels": list(model.labels),
        "prompt_template": model.prompt_template,
    }
