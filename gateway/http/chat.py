"""`/v1/chat/completions` and `/v1/models`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tidemill.inference.v1.inference_service_pb2 import GenerateRequest, GenerateResponse, StreamGenerateResponse
from tidemill.inference.v1.model_pb2 import Usage

from gateway.http.bodies import ChatBody, described
from gateway.http.calls import json_of, json_response, unless_gone, user_of, version_headers, watch_disconnect
from gateway.http.completions import Completion, ModelCard, ModelList
from gateway.http.errors import CODE_KEY, openai_error, unexpected
from gateway.http.openai import (
    ChatCall,
    ChunkWriter,
    as_sent,
    completion_of,
    error_event,
    model_card,
    model_not_found,
    read_chat,
    reference,
)
from gateway.plane import DataPlane
from services.kit.errors import InternalError, InvalidArgumentError, NotFoundError, TidemillError
from services.kit.grpc.validation import validate

logger = logging.getLogger(__name__)

# Proxies close an idle connection, the strictest ones after 30 s.
_KEEP_ALIVE_S = 10.0
_KEEP_ALIVE = b": waiting\n\n"


def chat_routes(plane: DataPlane) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/v1/chat/completions",
        response_model=Completion,
        **described(ChatBody, "Writes an answer, whole or as server-sent events"),
    )
    async def chat_completions(request: Request) -> Response:
        call = read_chat(await json_of(request), plane.table.prompt_template)
        try:
            return await (_streamed if call.stream else _whole)(plane, request, call)
        except NotFoundError as error:
            raise model_not_found(call.model) from error
        except InvalidArgumentError as error:
            raise as_sent(error, call) from error

    @router.get("/v1/models", response_model=ModelList, summary="Lists the models that answer")
    async def list_models() -> Response:
        models = [card for route in plane.table.routes() if (card := model_card(route)) is not None]
        return json_response(ModelList(data=models).model_dump())

    @router.get("/v1/models/{model}/versions/{version}", response_model=ModelCard)
    @router.get("/v1/models/{model}", response_model=ModelCard)
    async def get_model(model: str, version: str = "") -> Response:
        asked = reference(f"{model}/versions/{version}" if version else model)
        found = next((model_card(route, asked) for route in plane.table.routes() if route.model == asked.model), None)
        if found is None:
            raise model_not_found(model)
        return json_response(found.model_dump())

    return router


async def _whole(plane: DataPlane, request: Request, call: ChatCall) -> Response:
    asked = call.whole()
    validate(asked[0])
    gone = watch_disconnect(request)
    try:
        responses = await unless_gone(_all(plane, asked, user_of(request, call.user)), gone)
    finally:
        gone.cancel()
    completion = completion_of(responses, call.model, int(time.time()), call.sampling.logprobs)
    first = responses[0]
    return json_response(completion.model_dump(), headers=version_headers(first.model_version, first.role))


async def _all(plane: DataPlane, asked: list[GenerateRequest], user: str) -> list[GenerateResponse]:
    """All answers, by one version. If one fails, the others end, too."""
    choice = plane.answers.choose(asked[0], user)
    try:
        async with asyncio.TaskGroup() as group:
            answers = [group.create_task(plane.answers.generate(item, choice=choice)) for item in asked]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [answer.result() for answer in answers]


async def _streamed(plane: DataPlane, request: Request, call: ChatCall) -> Response:
    """Waits for the first piece, so that errors in a request still determine the HTTP status.

    If the first piece takes long, the stream begins with comments, and later errors become error events.
    """
    asked = call.streamed()
    validate(asked[0])
    choice = plane.answers.choose(asked[0], user_of(request, call.user))
    gone = watch_disconnect(request)
    answers = [_Pieces(plane.answers.stream(item, choice), call.model) for item in asked]
    try:
        await unless_gone(answers[0].wait(), gone)
    except BaseException:
        gone.cancel()
        await _close(answers)
        raise
    first = answers[0].first
    version, role = (first.model_version, first.role) if first else (choice.version.name, choice.version.role)
    return _EventStream(answers, gone, call, version_headers(version, role))


class _Pieces:
    """The pieces of an answer, with comments to keep the connection open while the next one takes long."""

    def __init__(self, upstream: AsyncGenerator[StreamGenerateResponse, None], model: str) -> None:
        self._upstream, self._model = upstream, model
        self._reading = self._read()
        self._is_first = True

    def _read(self) -> asyncio.Task[StreamGenerateResponse | None]:
        async def read() -> StreamGenerateResponse | None:
            return await anext(self._upstream, None)

        return asyncio.create_task(read())

    async def wait(self) -> bool:
        """Waits a while for the next piece; False if it has not arrived.

        Raises:
            InternalError: the answer ended before its first piece.
        """
        done, _ = await asyncio.wait({self._reading}, timeout=_KEEP_ALIVE_S)
        if done and self._reading.result() is None and self._is_first:
            raise InternalError(f"The model {self._model} gave no answer.", reason="EMPTY_ANSWER")
        return bool(done)

    @property
    def first(self) -> StreamGenerateResponse | None:
        """The first piece, if it has arrived and was not taken."""
        return self._reading.result() if self._is_first and self._reading.done() else None

    async def next(self, write: Any) -> StreamGenerateResponse | None:
        """The next piece, or None at the end; until it arrives comments keep the connection open."""
        while not await self.wait():
            await write(_KEEP_ALIVE)
        piece = self._reading.result()
        if piece is not None:
            self._is_first = False
            self._reading = self._read()
        return piece

    def cancel(self) -> None:
        """Makes a reader that waits raise CancelledError."""
        self._reading.cancel()

    async def close(self) -> None:
        """Ends the answer, in Triton too."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._upstream.aclose()


async def _close(answers: Sequence[_Pieces]) -> None:
    await asyncio.gather(*(pieces.close() for pieces in answers))


class _EventStream(Response):
    """Sends the pieces of answers as they arrive; if the client disconnects, generation stops."""

    media_type = "text/event-stream"

    def __init__(
        self, answers: Sequence[_Pieces], gone: asyncio.Task[None], call: ChatCall, headers: Mapping[str, str]
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._answers = answers
        # Name and version of the first answer, which name the whole stream.
        self._named: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
        self._gone = gone
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the whole stream."""

        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        def hung_up(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                for pieces in self._answers:
                    pieces.cancel()

        self._gone.add_done_callback(hung_up)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await self._write_answers(write)
            await write(ChunkWriter.DONE, more=False)
        except asyncio.CancelledError:
            if not self._gone.done():
                raise
            scope[CODE_KEY] = "CANCELLED"
        except TidemillError as error:
            scope[CODE_KEY] = error.code
            await write(error_event(openai_error(error)), more=False)
        except Exception as error:
            logger.exception("an answer of %s failed unexpectedly", self._call.model)
            failure = unexpected(error)
            scope[CODE_KEY] = failure.code
            await write(error_event(openai_error(failure)), more=False)
        finally:
            self._gone.cancel()
            self._named.cancel()
            await _close(self._answers)

    async def _write_answers(self, write: Any) -> None:
        if len(self._answers) == 1:
            usages = [await self._write_answer(write, 0)]
        else:
            try:
                # Each event is written at once, so those of several answers do not mix.
                async with asyncio.TaskGroup() as group:
                    writing = [group.create_task(self._write_answer(write, at)) for at in range(len(self._answers))]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            if self._gone.done():
                raise asyncio.CancelledError
            usages = [answer.result() for answer in writing]
        if self._call.include_usage:
            await write(self._chunks(*self._named.result(), 0).usage(*usages))

    def _chunks(self, answer: str, model_version: str, index: int) -> ChunkWriter:
        call = self._call
        return ChunkWriter(answer, model_version, call.model, int(time.time()), call.include_usage, index)

    async def _write_answer(self, write: Any, index: int) -> Usage:
        """Writes an answer; returns its usage."""
        pieces = self._answers[index]
        first = await pieces.next(write)
        if first is None:
            raise InternalError(f"The model {self._call.model} gave no answer.", reason="EMPTY_ANSWER")
        if index == 0:
            self._named.set_result((first.answer, first.model_version))
        chunks = self._chunks(*await self._named, index)
        await write(chunks.role())
        piece: StreamGenerateResponse | None = first
        last = first
        while piece is not None:
            if piece.text_delta or piece.logprobs:
                await write(chunks.text(piece.text_delta, piece.logprobs))
            for part in piece.tool_calls:
                await write(chunks.call(part))
            last = piece
            piece = await pieces.next(write)
        if not last.finish_reason:
            raise InternalError("The answer ended before it was complete.", reason="INCOMPLETE_ANSWER")
        await write(chunks.finish(last.finish_reason, bool(last.usage.truncated_tokens)))
        return last.usage
