"""`/v1/responses` in its text form: OpenAI's newer way to ask for an answer.

Source: https://platform.openai.com/docs/api-reference/responses. A response is not kept: it cannot be retrieved, and no
other can follow it by its id. Options that are not offered are refused by name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from tidemill.inference.v1.inference_service_pb2 import GenerateResponse, StreamGenerateResponse
from tidemill.inference.v1.model_pb2 import FINISH_REASON_LENGTH, ChatMessage, Conversation, SamplingParams, Usage

from gateway.access import FLEX
from gateway.http import completions
from gateway.http.bodies import described, read_body
from gateway.http.calls import json_of, json_response, user_of, version_headers
from gateway.http.errors import status_of
from gateway.http.generation import streamed, whole
from gateway.http.openai import ROLES, ChatCall, as_sent, event, logprobs_of, model_not_found, reference
from gateway.http.response_bodies import (
    IncompleteDetails,
    OutputMessage,
    OutputText,
    ResponseError,
    ResponseObject,
    ResponsesBody,
    ResponseUsage,
)
from gateway.plane import DataPlane
from services.kit.errors import InvalidArgumentError, NotFoundError, TidemillError
from services.kit.grpc.validation import validate
from services.kit.ids import new_id
from services.serving.domain.names import ModelReference

_MESSAGE = re.compile(r"messages\[(\d+)\]")


def response_routes(plane: DataPlane) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/v1/responses",
        response_model=ResponseObject,
        **described(ResponsesBody, "Writes an answer, whole or as server-sent events"),
    )
    async def responses(request: Request) -> Response:
        call = read_response(await json_of(request), plane.table.prompt_template)
        call.chat.take_tier()
        try:
            return await (_streamed if call.chat.stream else _whole)(plane, request, call)
        except NotFoundError as error:
            raise model_not_found(call.chat.model) from error
        except InvalidArgumentError as error:
            raise as_sent(error, call.sent_name) from error

    return router


async def _whole(plane: DataPlane, request: Request, call: ResponseCall) -> Response:
    asked = call.chat.whole()
    validate(asked[0])
    [answer] = await whole(plane, request, asked, user_of(request, call.chat.user))
    return json_response(
        call.complete(answer, int(time.time())).model_dump(), headers=version_headers(answer.model_version, answer.role)
    )


async def _streamed(plane: DataPlane, request: Request, call: ResponseCall) -> Response:
    asked = call.chat.streamed()
    validate(asked[0])
    events = ResponseEvents(call, int(time.time()))
    return await streamed(plane, request, asked, user_of(request, call.chat.user), events)


@dataclass(frozen=True, slots=True)
class ResponseCall:
    """A parsed request."""

    body: ResponsesBody
    chat: ChatCall

    def sent_name(self, field: str) -> str:
        """The name under which the caller sent a field of the request."""
        if field == "json_schema":
            return "text.format"
        found = _MESSAGE.match("messages[0]" if field == "text" else field)
        if found is None:
            return {"max_tokens": "max_output_tokens"}.get(field, field)
        number = int(found[1]) - bool(self.body.instructions)
        if number < 0:
            return "instructions"
        if isinstance(self.body.input, str):
            return "input"
        return f"input[{number}]{field[found.end() :]}" if field != "text" else f"input[{number}].content"

    def begun(self, answer: str, model_version: str, created: int) -> ResponseObject:
        """The response before its text."""
        body = self.body
        form = body.text.format if body.text is not None else None
        return ResponseObject(
            id=answer,
            created_at=created,
            status="in_progress",
            instructions=body.instructions or None,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata,
            model=self.chat.model,
            model_version=model_version,
            service_tier=self.chat.service_tier,
            temperature=body.temperature,
            text={"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
            top_p=body.top_p,
            user=body.user or None,
        )

    def complete(self, answer: GenerateResponse, created: int) -> ResponseObject:
        """The whole response."""
        begun = self.begun(answer.answer, answer.model_version, created)
        logprobs = logprobs_of(answer.logprobs)
        return _ended(begun, _message_id(), answer.text, logprobs, answer.finish_reason, answer.usage)


def read_response(value: dict[str, Any], template_of: Callable[[ModelReference], str]) -> ResponseCall:
    """Reads the body of a response.

    Args:
        value: the body.
        template_of: the prompt that a model was trained on; empty if it has none, or if there is no such model.

    Raises:
        InvalidArgumentError: names the first parameter that is wrong, unknown or not offered.
        NotFoundError: the model's name is not valid.
    """
    body = read_body(ResponsesBody, value)
    asked, apply = reference(body.model), body.apply_prompt_template
    messages = [ChatMessage(role="system", content=body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        messages.append(ChatMessage(role="user", content=body.input))
    else:
        messages += [ChatMessage(role=ROLES[item.role], content=item.text) for item in body.input]
    if apply is None:
        apply = body.is_single and bool(messages[0].content) and bool(template_of(asked))
    form = body.text.format if body.text is not None else None
    return ResponseCall(
        body,
        ChatCall(
            model=str(asked).removeprefix("models/"),
            user=body.user or body.safety_identifier,
            conversation=Conversation(messages=messages),
            sampling=SamplingParams(
                max_tokens=body.max_output_tokens or 0,
                temperature=body.temperature,
                top_p=body.top_p,
                seed=body.seed,
                json_schema=form.wanted_schema if form is not None else "",
                logprobs=bool(body.include),
            ),
            stream=body.stream,
            include_usage=True,
            apply_prompt_template=apply,
            store=body.store,
            background=body.service_tier == FLEX,
        ),
    )


def _message_id() -> str:
    return f"msg_{new_id()}"


def _ended(
    begun: ResponseObject,
    message: str,
    text: str,
    logprobs: Sequence[completions.TokenLogprob],
    finish_reason: int,
    usage: Usage,
) -> ResponseObject:
    cut = finish_reason == FINISH_REASON_LENGTH
    content = OutputText(text=text, logprobs=list(logprobs))
    return begun.model_copy(
        update={
            "status": "incomplete" if cut else "completed",
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": IncompleteDetails() if cut else None,
            "output": [OutputMessage(id=message, status="incomplete" if cut else "completed", content=[content])],
            "truncated": bool(usage.truncated_tokens),
            "usage": ResponseUsage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                total_tokens=usage.prompt_tokens + usage.completion_tokens,
                truncated_tokens=usage.truncated_tokens,
            ),
        }
    )


class ResponseEvents:
    """Renders a streamed response; see `gateway.http.generation.Events`.

    Source: https://platform.openai.com/docs/api-reference/responses-streaming.
    """

    def __init__(self, call: ResponseCall, created: int) -> None:
        self._call, self._created = call, created
        self._message = _message_id()
        self._begun = call.begun("", "", created)
        self._text: list[str] = []
        self._logprobs: list[completions.TokenLogprob] = []
        self._number = 0

    def begin(self, index: int, first: StreamGenerateResponse) -> Iterable[bytes]:
        """The response, and its message without a text."""
        self._begun = self._call.begun(first.answer, first.model_version, self._created)
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self._begun.model_dump())
        item = OutputMessage(id=self._message, status="in_progress", content=[])
        yield self._event("response.output_item.added", output_index=0, item=item.model_dump())
        yield self._part("response.content_part.added", part=OutputText(text="").model_dump())

    def piece(self, index: int, piece: StreamGenerateResponse) -> Iterable[bytes]:
        """A piece of the text, with its tokens if they were asked for."""
        if piece.text_delta or piece.logprobs:
            tokens = logprobs_of(piece.logprobs)
            self._text.append(piece.text_delta)
            self._logprobs += tokens
            shown = [token.model_dump() for token in tokens]
            yield self._part("response.output_text.delta", delta=piece.text_delta, logprobs=shown)

    def finish(self, index: int, last: StreamGenerateResponse) -> Iterable[bytes]:
        """The whole text, its message, and the response."""
        text = "".join(self._text)
        ended = _ended(self._begun, self._message, text, self._logprobs, last.finish_reason, last.usage)
        [message] = ended.output
        part = message.content[0].model_dump()
        yield self._part("response.output_text.done", text=text, logprobs=part["logprobs"])
        yield self._part("response.content_part.done", part=part)
        yield self._event("response.output_item.done", output_index=0, item=message.model_dump())
        yield self._event(f"response.{ended.status}", response=ended.model_dump())

    def end(self, usages: Sequence[Usage]) -> Iterable[bytes]:
        """Nothing: the last event has the whole response."""
        return ()

    def fail(self, error: TidemillError) -> Iterable[bytes]:
        """The response with its error."""
        code = "rate_limit_exceeded" if status_of(error) == 429 else "server_error"
        failed = self._begun.model_copy(
            update={"status": "failed", "error": ResponseError(code=code, message=error.message)}
        )
        yield self._event("response.failed", response=failed.model_dump())

    def _part(self, name: str, **fields: Any) -> bytes:
        return self._event(name, item_id=self._message, output_index=0, content_index=0, **fields)

    def _event(self, name: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": name, "sequence_number": number, **fields}, name)
