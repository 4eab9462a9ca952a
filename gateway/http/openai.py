"""Maps OpenAI's chat API to the inference service's messages and back. It makes no calls.

Source: https://platform.openai.com/docs/api-reference/chat. Unsupported options are refused by name, not ignored.
Without `temperature` the most probable tokens are taken. A single user message is put into the prompt that the model
was trained on, so that a stock client gets what was trained; our own option `apply_prompt_template` turns that off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import orjson
from tidemill.inference.v1.inference_service_pb2 import (
    GenerateRequest,
    GenerateResponse,
    StreamGenerateRequest,
    StreamGenerateResponse,
)
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

from gateway.access import BACKGROUND, FLEX
from gateway.http import completions
from gateway.http.bodies import ChatBody, read_body
from gateway.http.errors import openai_error
from services.kit.errors import FieldViolation, InvalidArgumentError, NotFoundError, TidemillError
from services.serving.domain.names import ModelReference, parse_reference
from services.serving.domain.route import Route

R = TypeVar("R", GenerateRequest, StreamGenerateRequest)

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
FINISH: dict[int, str] = {
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
    background: bool = False

    def take_tier(self) -> None:
        """Lets others come first for the rest of the present request, if its body says so."""
        if self.background:
            BACKGROUND.set(True)

    @property
    def service_tier(self) -> Literal["default", "flex"]:
        """How the present request is answered."""
        return "flex" if BACKGROUND.get() else "default"

    def whole(self) -> list[GenerateRequest]:
        """The requests for the complete answers. Each has a seed of its own, so that they differ."""
        return self._requests(GenerateRequest)

    def streamed(self) -> list[StreamGenerateRequest]:
        """The requests for the answers in pieces, as `whole`."""
        return self._requests(StreamGenerateRequest)

    def sent_name(self, field: str) -> str:
        """The name under which the caller sent a field of the request."""
        if field == "text" and self.apply_prompt_template:
            return "messages[0].content"
        return "response_format" if field == "json_schema" else field

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


def as_sent(error: InvalidArgumentError, sent_name: Callable[[str], str]) -> InvalidArgumentError:
    """The service's error for a request, with the field names that the caller sent.

    Args:
        error: names fields of `GenerateRequest`.
        sent_name: the caller's name of such a field, which is without `conversation.` and `sampling.`.
    """
    found = []
    for violation in error.violations:
        name = violation.field.removeprefix("conversation.").removeprefix("sampling.")
        found.append(FieldViolation(sent_name(name), violation.description))
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
                    role=ROLES[message.role],
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
        background=body.service_tier == FLEX,
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


def completion_of(responses: Sequence[GenerateResponse], call: ChatCall, created: int) -> completions.Completion:
    """Complete answers to one request."""
    choices = [
        completions.Choice(
            index=number,
            message=completions.Message(
                content=response.text if response.text or not response.tool_calls else None,
                tool_calls=[_call(part) for part in response.tool_calls] or None,
            ),
            logprobs=completions.ChoiceLogprobs(content=logprobs_of(response.logprobs))
            if call.sampling.logprobs
            else None,
            finish_reason=FINISH.get(response.finish_reason, "stop"),
            answer=response.answer,
        )
        for number, response in enumerate(responses)
    ]
    return completions.Completion(
        id=responses[0].answer,
        created=created,
        model=call.model,
        service_tier=call.service_tier,
        system_fingerprint=responses[0].model_version,
        choices=choices,
        truncated=bool(responses[0].usage.truncated_tokens),
        usage=usage_of(*(response.usage for response in responses)),
    )


def _call(call: ToolCall) -> completions.ToolCall:
    function = completions.CalledFunction(name=call.name, arguments=call.arguments)
    return completions.ToolCall(id=call.id, function=function)


def logprobs_of(tokens: Iterable[TokenLogprob]) -> list[completions.TokenLogprob]:
    """Tokens with their log probabilities."""
    return [
        completions.TokenLogprob(
            token=token.token,
            logprob=token.logprob,
            bytes=None if "\ufffd" in token.token else list(token.token.encode()),
        )
        for token in tokens
    ]


class ChatEvents:
    """Renders streamed answers; see `gateway.http.generation.Events`."""

    DONE = b"data: [DONE]\n\n"

    def __init__(self, call: ChatCall, created: int) -> None:
        self._include_usage = call.include_usage
        self._head: dict[str, Any] = {"object": "chat.completion.chunk", "created": created, "model": call.model}

    def begin(self, index: int, first: StreamGenerateResponse) -> Iterable[bytes]:
        """The role."""
        if index == 0:
            self._head = {"id": first.answer, **self._head, "system_fingerprint": first.model_version}
        yield self._event(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, piece: StreamGenerateResponse) -> Iterable[bytes]:
        """A piece of the text with its tokens, if they were asked for, and parts of the call of a function."""
        if piece.text_delta or piece.logprobs:
            logprobs = completions.ChoiceLogprobs(content=logprobs_of(piece.logprobs)) if piece.logprobs else None
            yield self._event(
                index, {"content": piece.text_delta}, logprobs=logprobs.model_dump() if logprobs is not None else None
            )
        for call in piece.tool_calls:
            # The first part names the function, the others add to its arguments.
            function = {"name": call.name, "arguments": call.arguments} if call.id else {"arguments": call.arguments}
            named = {"id": call.id, "type": "function"} if call.id else {}
            yield self._event(index, {"tool_calls": [{"index": 0, "function": function, **named}]})

    def finish(self, index: int, last: StreamGenerateResponse) -> Iterable[bytes]:
        """Why the answer ended. `truncated`: the end of the prompt was cut off."""
        truncated = bool(last.usage.truncated_tokens)
        yield self._event(index, {}, FINISH.get(last.finish_reason, "stop"), {"truncated": truncated})

    def end(self, usages: Sequence[Usage]) -> Iterable[bytes]:
        """The usage, if it was asked for."""
        if self._include_usage:
            yield event({**self._head, "choices": [], "usage": usage_of(*usages).model_dump()})
        yield self.DONE

    def fail(self, error: TidemillError) -> Iterable[bytes]:
        """An error in the middle of a stream, as OpenAI's clients expect it."""
        yield event(openai_error(error))

    def _event(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        more: Mapping[str, Any] | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self._include_usage else {}
        return event({**self._head, "choices": [choice], **usage, **(more or {})})


def event(value: Any, name: str = "") -> bytes:
    """A server-sent event (https://html.spec.whatwg.org/#server-sent-events); `name` is its type."""
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + orjson.dumps(value) + b"\n\n"


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
