"""`/v1/chat/completions` and `/v1/models`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from fastapi import APIRouter, Request
from opentelemetry import trace
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tidemill.inference.v1.inference_service_pb2 import GetModelRequest, ListModelsRequest
from tidemill.inference.v1.model_pb2 import Model, Usage

from gateway.http.bodies import ChatBody, described
from gateway.http.calls import json_of, json_response, unless_gone, watch_disconnect
from gateway.http.completions import Completion, ModelCard, ModelList
from gateway.http.errors import CODE_KEY, openai_error
from gateway.http.openai import (
    ChatCall,
    ChunkWriter,
    as_sent,
    completion_of,
    error_event,
    model_card,
    model_id,
    model_not_found,
    read_chat,
)
from gateway.peers import Peers, call_metadata
from services.kit.errors import InternalError, InvalidArgumentError, NotFoundError, TidemillError
from services.kit.grpc.errors import translate_rpc_errors
from services.kit.telemetry import schema

_GENERATION_S = 600.0
_LOOK_UP_S = 10.0
# Proxies close a connection on which nothing moves, the stricter ones after 30 s or a minute.
_KEEP_ALIVE_S = 10.0
_KEEP_ALIVE = b": waiting\n\n"


def chat_routes(peers: Peers) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/v1/chat/completions",
        response_model=Completion,
        **described(ChatBody, "Writes an answer, whole or as server-sent events"),
    )
    async def chat_completions(request: Request) -> Response:
        call = read_chat(await json_of(request))
        trace.get_current_span().set_attribute(schema.GEN_AI_MODEL, call.model)
        try:
            with translate_rpc_errors("inference"):
                return await (_streamed if call.stream else _whole)(peers, request, call)
        except NotFoundError as error:
            raise model_not_found(call.model) from error
        except InvalidArgumentError as error:
            raise as_sent(error, call) from error

    @router.get("/v1/models", response_model=ModelList, summary="Lists the models that answer")
    async def list_models() -> Response:
        models = [model_card(model) async for model in _serving(peers)]
        return json_response(ModelList(data=models).model_dump())

    @router.get("/v1/models/{model}", response_model=ModelCard)
    async def get_model(model: str) -> Response:
        name = model_id(model)
        try:
            with translate_rpc_errors("inference"):
                response = await peers.inference.GetModel(
                    GetModelRequest(name=f"models/{name}"), timeout=_LOOK_UP_S, metadata=call_metadata()
                )
        except NotFoundError as error:
            raise model_not_found(name) from error
        if not response.model.HasField("serving"):
            raise model_not_found(name)
        return json_response(model_card(response.model).model_dump())

    return router


async def _serving(peers: Peers) -> AsyncIterator[Model]:
    token = ""
    while True:
        with translate_rpc_errors("inference"):
            page = await peers.inference.ListModels(
                ListModelsRequest(page_size=1000, page_token=token), timeout=_LOOK_UP_S, metadata=call_metadata()
            )
        for model in page.models:
            if model.HasField("serving"):
                yield model
        token = page.next_page_token
        if not token:
            return


def _note(answer: str, model_version: str, usage: Usage) -> None:
    trace.get_current_span().set_attributes(
        {
            schema.ANSWER: answer,
            schema.MODEL_VERSION: model_version,
            schema.GEN_AI_INPUT_TOKENS: usage.prompt_tokens,
            schema.GEN_AI_OUTPUT_TOKENS: usage.completion_tokens,
        }
    )


async def _whole(peers: Peers, request: Request, call: ChatCall) -> Response:
    gone = watch_disconnect(request)
    try:
        response = await unless_gone(
            peers.inference.Generate(call.whole(), timeout=_GENERATION_S, metadata=call_metadata()), gone
        )
    finally:
        gone.cancel()
    _note(response.answer, response.model_version, response.usage)
    return json_response(completion_of(response, call.model, int(time.time())).model_dump())


async def _streamed(peers: Peers, request: Request, call: ChatCall) -> Response:
    """Waits for the first piece, so that errors in a request still determine the HTTP status.

    An answer that waits longer for its turn becomes a stream of comments; what goes wrong afterwards is an error event.
    """
    upstream = peers.inference.StreamGenerate(call.streamed(), timeout=_GENERATION_S, metadata=call_metadata())
    gone = watch_disconnect(request)
    try:
        pieces = _Pieces(upstream, call.model)
        await unless_gone(pieces.wait(), gone)
    except BaseException:
        upstream.cancel()
        gone.cancel()
        raise
    return _EventStream(upstream, pieces, gone, call)


class _Pieces:
    """The pieces of an answer, with an eye on the clock."""

    def __init__(self, upstream: Any, model: str) -> None:
        self._upstream, self._model = upstream, model
        self._reading: asyncio.Task[Any] = asyncio.ensure_future(upstream.read())
        self._is_first = True

    async def wait(self) -> bool:
        """Waits a while for the next piece; False if it has not arrived.

        Raises:
            InternalError: the answer ended before its first piece.
        """
        done, _ = await asyncio.wait({self._reading}, timeout=_KEEP_ALIVE_S)
        if done and self._reading.result() is grpc.aio.EOF and self._is_first:
            raise InternalError(f"The model {self._model} gave no answer.", reason="EMPTY_ANSWER")
        return bool(done)

    async def next(self, write: Any) -> Any:
        """The next piece, or grpc.aio.EOF; until it arrives comments keep the connection open."""
        while not await self.wait():
            await write(_KEEP_ALIVE)
        piece = self._reading.result()
        if piece is not grpc.aio.EOF:
            self._is_first = False
            self._reading = asyncio.ensure_future(self._upstream.read())
        return piece

    def close(self) -> None:
        """Ends the reading."""
        self._reading.cancel()


class _EventStream(Response):
    """Sends the pieces of an answer as they arrive; if the client disconnects, generation stops."""

    media_type = "text/event-stream"

    def __init__(self, upstream: Any, pieces: _Pieces, gone: asyncio.Task[None], call: ChatCall) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._upstream = upstream
        self._pieces = pieces
        self._gone = gone
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the whole stream."""

        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        # A local cancel makes the pending read raise CancelledError in this task.
        self._gone.add_done_callback(lambda task: task.cancelled() or self._upstream.cancel())
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            with translate_rpc_errors("inference"):
                await self._write_answer(write)
            await write(ChunkWriter.DONE, more=False)
        except asyncio.CancelledError:
            if not self._gone.done():
                raise
            scope[CODE_KEY] = "CANCELLED"
        except TidemillError as error:
            scope[CODE_KEY] = error.code
            await write(error_event(openai_error(error)), more=False)
        finally:
            self._gone.cancel()
            self._pieces.close()
            self._upstream.cancel()

    async def _write_answer(self, write: Any) -> None:
        call = self._call
        first = await self._pieces.next(write)
        chunks = ChunkWriter(first.answer, first.model_version, call.model, int(time.time()), call.include_usage)
        await write(chunks.role())
        piece: Any = first
        last = first
        while piece is not grpc.aio.EOF:
            if piece.text_delta:
                await write(chunks.text(piece.text_delta))
            last = piece
            piece = await self._pieces.next(write)
        if not last.finish_reason:
            raise InternalError("The answer ended before it was complete.", reason="INCOMPLETE_ANSWER")
        await write(chunks.finish(last.finish_reason))
        if call.include_usage:
            await write(chunks.usage(last.usage))
        _note(first.answer, first.model_version, last.usage)
