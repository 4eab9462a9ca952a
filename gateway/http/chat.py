"""`/v1/chat/completions` and `/v1/models`."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.http.bodies import ChatBody, described
from gateway.http.calls import json_of, json_response, user_of, version_headers
from gateway.http.completions import Completion, ModelCard, ModelList
from gateway.http.generation import streamed, whole
from gateway.http.openai import (
    ChatCall,
    ChatEvents,
    as_sent,
    completion_of,
    model_card,
    model_not_found,
    read_chat,
    reference,
)
from gateway.plane import DataPlane
from services.kit.errors import InvalidArgumentError, NotFoundError
from services.kit.grpc.validation import validate


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
        call.take_tier()
        try:
            return await (_streamed if call.stream else _whole)(plane, request, call)
        except NotFoundError as error:
            raise model_not_found(call.model) from error
        except InvalidArgumentError as error:
            raise as_sent(error, call.sent_name) from error

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
    responses = await whole(plane, request, asked, user_of(request, call.user), call.answers)
    completion = completion_of(responses, call, int(time.time()))
    first = responses[0]
    return json_response(completion.model_dump(), headers=version_headers(first.model_version, first.role))


async def _streamed(plane: DataPlane, request: Request, call: ChatCall) -> Response:
    asked = call.streamed()
    validate(asked[0])
    events = ChatEvents(call, int(time.time()))
    return await streamed(plane, request, asked, user_of(request, call.user), events, call.answers)
