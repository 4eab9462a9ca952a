"""`/v1/responses`: OpenAI's newer way to ask for an answer, a text or the call of a function.

Source: https://platform.openai.com/docs/api-reference/responses. A response is not kept: it cannot be retrieved, and no
other can follow it by its id. Options that are not offered are refused by name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response
from tidemill.inference.v1.inference_service_pb2 import GenerateResponse, StreamGenerateResponse
from tidemill.inference.v1.model_pb2 import FINISH_REASON_LENGTH, Conversation, SamplingParams, Usage

from gateway.access import FLEX
from gateway.http import completions
from gateway.http.bodies import described, read_body
from gateway.http.calls import json_of, json_response, user_of, version_headers
from gateway.http.errors import status_of
from gateway.http.generation import streamed, whole
from gateway.http.openai import ChatCall, as_sent, event, logprobs_of, model_not_found, reference
from gateway.http.response_bodies import (
    IncompleteDetails,
    ResponseError,
    ResponseObject,
    ResponsesBody,
    ResponseUsage,
)
from gateway.http.response_items import ConversationItem, OutputCall, OutputMessage, OutputText, turns_of
from gateway.plane import DataPlane
from services.kit.errors import InvalidArgumentError, NotFoundError, TidemillError
from services.kit.grpc.validation import validate
from services.kit.ids import new_id
from services.serving.domain.names import ModelReference

_MESSAGE = re.compile(r"messages\[(\d+)\](.*)")


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
    turns: list[ConversationItem]
    chat: ChatCall

    def sent_name(self, field: str) -> str:
        """The name under which the caller sent a field of the request."""
        if field == "json_schema":
            return "text.format"
        found = _MESSAGE.match("messages[0].content" if field == "text" else field)
        if found is None:
            return {"max_tokens": "max_output_tokens"}.get(field, field)
        return self.turns[int(found[1])].sent_name(found[2])

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
            tool_choice=body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
            tools=[tool.model_dump() for tool in body.tools],
            text={"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
            top_p=body.top_p,
            user=body.user or None,
        )

    def complete(self, answer: GenerateResponse, created: int) -> ResponseObject:
        """The whole response."""
        begun = self.begun(answer.answer, answer.model_version, created)
        state = _state(answer.finish_reason)
        items: list[OutputMessage | OutputCall] = []
        if answer.text or not answer.tool_calls:
            content = OutputText(text=answer.text, logprobs=logprobs_of(answer.logprobs))
            ended = "completed" if answer.tool_calls else state
            items.append(OutputMessage(id=_item_id("msg"), status=ended, content=[content]))
        for call in answer.tool_calls:
            items.append(
                OutputCall(id=_item_id("fc"), call_id=call.id, name=call.name, arguments=call.arguments, status=state)
            )
        return _ended(begun, items, state, answer.usage)


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
    turns = turns_of(body.instructions, body.input)
    if apply is None:
        apply = body.is_single and not body.tools and bool(turns[0].message.content) and bool(template_of(asked))
    form = body.text.format if body.text is not None else None
    return ResponseCall(
        body,
        turns,
        ChatCall(
            model=str(asked).removeprefix("models/"),
            user=body.user or body.safety_identifier,
            conversation=Conversation(messages=[turn.message for turn in turns]),
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
            tools=tuple(tool.tool for tool in body.tools),
            tool_choice=body.choice,
            background=body.service_tier == FLEX,
        ),
    )


def _item_id(kind: str) -> str:
    return f"{kind}_{new_id()}"


def _state(finish_reason: int) -> Literal["completed", "incomplete"]:
    return "incomplete" if finish_reason == FINISH_REASON_LENGTH else "completed"


def _ended(
    begun: ResponseObject,
    items: Sequence[OutputMessage | OutputCall],
    state: Literal["completed", "incomplete"],
    usage: Usage,
) -> ResponseObject:
    cut = state == "incomplete"
    return begun.model_copy(
        update={
            "status": state,
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": IncompleteDetails() if cut else None,
            "output": list(items),
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

    An item begins with its first piece, and ends where the next one begins or the answer ends. Source:
    https://platform.openai.com/docs/api-reference/responses-streaming.
    """

    def __init__(self, call: ResponseCall, created: int) -> None:
        self._call, self._created = call, created
        self._begun = call.begun("", "", created)
        self._items: list[OutputMessage | OutputCall] = []
        """The last one is still being written while `_is_open`."""
        self._is_open = False
        self._pieces: list[str] = []
        """Of the open item's text, or of its arguments."""
        self._logprobs: list[completions.TokenLogprob] = []
        self._number = 0

    def begin(self, index: int, first: StreamGenerateResponse) -> Iterable[bytes]:
        """The response without items."""
        self._begun = self._call.begun(first.answer, first.model_version, self._created)
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self._begun.model_dump())

    def piece(self, index: int, piece: StreamGenerateResponse) -> Iterable[bytes]:
        """A piece of the text, with its tokens if they were asked for, and parts of the call of a function."""
        if piece.text_delta or piece.logprobs:
            yield from self._message()
            tokens = logprobs_of(piece.logprobs)
            self._pieces.append(piece.text_delta)
            self._logprobs += tokens
            shown = [token.model_dump() for token in tokens]
            yield self._of_part("response.output_text.delta", delta=piece.text_delta, logprobs=shown)
        for call in piece.tool_calls:
            if call.id:
                yield from self._close("completed")
                begun = OutputCall(
                    id=_item_id("fc"), call_id=call.id, name=call.name, arguments="", status="in_progress"
                )
                yield from self._open(begun)
            if call.arguments:
                self._pieces.append(call.arguments)
                yield self._of_item("response.function_call_arguments.delta", delta=call.arguments)

    def finish(self, index: int, last: StreamGenerateResponse) -> Iterable[bytes]:
        """The end of the last item, and the whole response."""
        if not self._items:
            yield from self._message()
        state = _state(last.finish_reason)
        yield from self._close(state)
        ended = _ended(self._begun, self._items, state, last.usage)
        yield self._event(f"response.{state}", response=ended.model_dump())

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

    def _message(self) -> Iterable[bytes]:
        """Begins a message, unless one is being written."""
        if self._is_open and isinstance(self._items[-1], OutputMessage):
            return
        yield from self._close("completed")
        yield from self._open(OutputMessage(id=_item_id("msg"), status="in_progress", content=[]))
        yield self._of_part("response.content_part.added", part=OutputText(text="").model_dump())

    def _open(self, item: OutputMessage | OutputCall) -> Iterable[bytes]:
        self._items.append(item)
        self._is_open, self._pieces = True, []
        yield self._whole_item("response.output_item.added", item)

    def _close(self, state: Literal["completed", "incomplete"]) -> Iterable[bytes]:
        """Ends the item that is being written, if there is one."""
        if not self._is_open:
            return
        text = "".join(self._pieces)
        done: OutputMessage | OutputCall
        if isinstance(item := self._items[-1], OutputMessage):
            part = OutputText(text=text, logprobs=self._logprobs)
            shown = part.model_dump()
            yield self._of_part("response.output_text.done", text=text, logprobs=shown["logprobs"])
            yield self._of_part("response.content_part.done", part=shown)
            done = item.model_copy(update={"status": state, "content": [part]})
        else:
            yield self._of_item("response.function_call_arguments.done", name=item.name, arguments=text)
            done = item.model_copy(update={"status": state, "arguments": text})
        yield self._whole_item("response.output_item.done", done)
        self._items[-1], self._is_open = done, False

    def _of_part(self, kind: str, /, **fields: Any) -> bytes:
        return self._of_item(kind, content_index=0, **fields)

    def _of_item(self, kind: str, /, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._items[-1].id, output_index=len(self._items) - 1, **fields)

    def _whole_item(self, kind: str, item: OutputMessage | OutputCall) -> bytes:
        return self._event(kind, output_index=len(self._items) - 1, item=item.model_dump())

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)
