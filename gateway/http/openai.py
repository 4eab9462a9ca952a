"""Maps OpenAI's chat API to the inference service's messages and back. It makes no calls.

Source: https://platform.openai.com/docs/api-reference/chat. Unsupported options are refused by name, not ignored.
Without `temperature` the most probable tokens are taken. A single user message is put into the prompt that the model
was trained on, so that a stock client gets what was trained; our own option `apply_prompt_template` turns that off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from tidemill.inference.v1.inference_service_pb2 import GenerateRequest, GenerateResponse, StreamGenerateRequest
from tidemill.inference.v1.model_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    ChatMessage,
    Conversation,
    SamplingParams,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
)

from gateway.http import completions
from gateway.http.bodies import ChatBody, read_body
from services.kit.errors import FieldViolation, InvalidArgumentError, NotFoundError
from services.serving.domain.names import ModelReference, parse_reference
from services.serving.domain.route import Route

R = TypeVar("R", GenerateRequest, StreamGenerateRequest)

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_FINISH: dict[int, str] = {
    FINISH_REASON_STOP: "stop",
    FINISH_REASON_LENGTH: "length",
    FINISH_REASON_TOOL_CALLS: "tool_calls",
}


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A parsed request."""

    model: str
    """The id as callers write it, such as `headlines`, `headlines/versions/4` or `headlines/versions/champion`."""
    user: str
    """For whom the answer is; empty where the body names no one."""
    conversation: Conversation
    sampling: SamplingParams
    stream: bool
    include_usage: bool
    apply_prompt_template: bool
    store: bool | None = None
    answers: int = 1
    tools: tuple[Tool, ...] = ()
    tool_choice: str = ""

    def whole(self) -> list[GenerateRequest]:
        """The requests for the complete answers. Each has a seed of its own, so that they differ."""
        return self._requests(GenerateRequest)

    def streamed(self) -> list[StreamGenerateRequest]:
        """The requests for the answers in pieces, as `whole`."""
        return self._requests(StreamGenerateRequest)

    def _requests(self, kind: type[R]) -> list[R]:
        requests = [self._request(kind) for _ in range(self.answers)]
        if self.sampling.HasField("seed"):
            for number, request in enumerate(requests):
                request.sampling.seed = (self.sampling.seed + number) % 2**63
        return requests

    def _request(self, kind: type[R]) -> R:
        request = kind(
            model=str(reference(self.model)),
            sampling=self.sampling,
            store=self.store,
            tools=self.tools,
            tool_choice=self.tool_choice,
        )
        if self.apply_prompt_template:
            request.text = self.conversation.messages[0].content
        else:
            request.conversation.CopyFrom(self.conversation)
        return request


def reference(name: str) -> ModelReference:
    """The model, or version, that a caller names, with or without `models/`.

    Raises:
        NotFoundError: no model can have this name.
    """
    found = parse_reference(name)
    if found is None:
        raise model_not_found(name)
    return found


def model_not_found(name: str) -> NotFoundError:
    """The error for a model that does not answer."""
    return NotFoundError(
        f"The model `{name.removeprefix('models/')[:128]}` does not exist or has no serving version; "
        "GET /v1/models lists those that serve.",
        reason="MODEL_NOT_FOUND",
        violations=[FieldViolation("model", "no such model")],
    )


def as_sent(error: InvalidArgumentError, call: ChatCall) -> InvalidArgumentError:
    """The service's error for a request, with the field names that the caller sent."""
    names = {"json_schema": "response_format"}
    if call.apply_prompt_template:
        names["text"] = "messages[0].content"
    found = []
    for violation in error.violations:
        name = violation.field.removeprefix("conversation.").removeprefix("sampling.")
        found.append(FieldViolation(names.get(name, name), violation.description))
    text = "; ".join(f"`{item.field}`: {item.description}" for item in found)
    # For a broken rule of the contract the field's text is enough; a service's own check explains more in its message.
    message = text if error.reason in ("INVALID_FIELD", "INVALID_SCHEMA") and found else error.message
    return InvalidArgumentError(message, reason=error.reason, metadata=error.metadata, violations=found)


def read_chat(value: dict[str, Any], template_of: Callable[[ModelReference], str]) -> ChatCall:
    """Reads the body of a chat completion.

    Args:
        value: the body.
        template_of: the prompt that a model was trained on; empty if it has none, or if there is no such model.

    Raises:
        InvalidArgumentError: names the first parameter that is wrong, unknown or not offered.
        NotFoundError: the model's name is not valid.
    """
    body = read_body(ChatBody, value)
    asked, apply = reference(body.model), body.apply_prompt_template
    if apply is None:
        is_single = len(body.messages) == 1 and body.messages[0].role == "user" and bool(body.messages[0].text)
        apply = is_single and not body.tools and bool(template_of(asked))
    return ChatCall(
        model=str(asked).removeprefix("models/"),
        user=body.user or body.safety_identifier,
        conversation=Conversation(
            messages=[
                ChatMessage(
                    role=_ROLES[message.role],
                    content=message.text,
                    tool_calls=[
                        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
                        for call in message.tool_calls
                    ],
                    tool_call_id=message.tool_call_id,
                )
                for message in body.messages
            ]
        ),
        sampling=SamplingParams(
            max_tokens=body.max_tokens or body.max_completion_tokens or 0,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            stop=body.stop,
            top_k=body.top_k,
            frequency_penalty=body.frequency_penalty,
            presence_penalty=body.presence_penalty,
            repetition_penalty=body.repetition_penalty,
            json_schema="" if body.response_format is None else body.response_format.wanted_schema,
            logprobs=body.logprobs,
        ),
        stream=body.stream,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        apply_prompt_template=apply,
        store=body.store,
        answers=body.n,
        tools=tuple(
            Tool(
                name=tool.function.name,
                description=tool.function.description,
                parameters=orjson.dumps(tool.function.parameters).decode() if tool.function.parameters else "",
            )
            for tool in body.tools
        ),
        tool_choice=_tool_choice(body),
    )


def _tool_choice(body: ChatBody) -> str:
    if not body.tools and body.tool_choice in ("none", "auto"):
        return ""  # which clients always send
    return body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.function.name


def usage_of(*usages: Usage) -> completions.Usage:
    """The token usage of a request with these answers; the prompt counts once."""
    prompt, completion = usages[0].prompt_tokens, sum(usage.completion_tokens for usage in usages)
    return completions.Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        truncated_tokens=usages[0].truncated_tokens,
    )


def completion_of(
    responses: Sequence[GenerateResponse], model: str, created: int, logprobs: bool
) -> completions.Completion:
    """Complete answers to one request; `logprobs`: with the log probabilities of their tokens."""
    choices = [
        completions.Choice(
            index=number,
            message=completions.Message(
                content=response.text if response.text or not response.tool_calls else None,
                tool_calls=[_call(call) for call in response.tool_calls] or None,
            ),
            logprobs=_logprobs(response.logprobs) if logprobs else None,
            finish_reason=_FINISH.get(response.finish_reason, "stop"),
            answer=response.answer,
        )
        for number, response in enumerate(responses)
    ]
    return completions.Completion(
        id=responses[0].answer,
        created=created,
        model=model,
        system_fingerprint=responses[0].model_version,
        choices=choices,
        truncated=bool(responses[0].usage.truncated_tokens),
        usage=usage_of(*(response.usage for response in responses)),
    )


def _call(call: ToolCall) -> completions.ToolCall:
    function = completions.CalledFunction(name=call.name, arguments=call.arguments)
    return completions.ToolCall(id=call.id, function=function)


def _logprobs(tokens: Iterable[TokenLogprob]) -> completions.ChoiceLogprobs:
    return completions.ChoiceLogprobs(
        content=[
            completions.TokenLogprob(
                token=token.token,
                logprob=token.logprob,
                bytes=None if "\ufffd" in token.token else list(token.token.encode()),
            )
            for token in tokens
        ]
    )


class ChunkWriter:
    """Renders the events of one streamed answer (server-sent events, https://html.spec.whatwg.org/#server-sent-events)."""

    DONE = b"data: [DONE]\n\n"

    def __init__(
        self, answer: str, model_version: str, model: str, created: int, include_usage: bool, index: int = 0
    ) -> None:
        self._index = index
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

    def text(self, delta: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """A piece of the answer, and its tokens if they were asked for."""
        return self._event({"content": delta}, None, _logprobs(logprobs).model_dump() if logprobs else None)

    def call(self, call: ToolCall) -> bytes:
        """A part of the call of a function: the first names it, the others add to its arguments."""
        function: dict[str, str] = {"arguments": call.arguments}
        part: dict[str, Any] = {"index": 0, "function": function}
        if call.id:
            part |= {"id": call.id, "type": "function"}
            function["name"] = call.name
        return self._event({"tool_calls": [part]}, None)

    def finish(self, reason: int, truncated: bool) -> bytes:
        """The end of the answer; `truncated`: the end of the prompt was cut off."""
        self._tail["truncated"] = truncated
        return self._event({}, _FINISH.get(reason, "stop"))

    def usage(self, *usages: Usage) -> bytes:
        """The event that follows the answers if `include_usage` was set."""
        return _data({**self._head, "choices": [], "usage": usage_of(*usages).model_dump()})

    def _event(self, delta: dict[str, Any], finish_reason: str | None, logprobs: dict[str, Any] | None = None) -> bytes:
        choice = {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return _data({**self._head, "choices": [choice], **self._tail})


def _data(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def error_event(body: dict[str, Any]) -> bytes:
    """An error in the middle of a stream, as OpenAI's clients expect it."""
    return _data(body)


def model_card(route: Route, asked: ModelReference | None = None) -> completions.ModelCard | None:
    """A model that answers, with the version that serves, or with the one that was asked for; None if none does."""
    version = route.named(asked.version) if asked is not None and asked.version else route.serving
    if version is None:
        return None
    return completions.ModelCard(
        id=str(asked).removeprefix("models/") if asked is not None else route.model,
        created=int(route.create_time.timestamp()),
        version=version.name,
        task=version.task.value,
        precision=version.precision,
        labels=list(version.labels),
        embedding_size=version.embedding_size,
        prompt_template=version.prompt_template,
    )
