"""`/v1/embeddings`: texts as vectors, in OpenAI's dialect.

Source: https://platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterable

from fastapi import APIRouter, Request
from starlette.responses import Response
from tidemill.inference.v1.inference_service_pb2 import EmbedRequest

from gateway.http.bodies import EmbeddingsBody, described, read_body
from gateway.http.calls import json_of, json_response, unless_gone, version_headers, watch_disconnect
from gateway.http.completions import EmbeddingItem, Embeddings, EmbeddingsUsage
from gateway.http.openai import model_not_found, reference
from gateway.plane import DataPlane
from services.kit.errors import FieldViolation, InvalidArgumentError, NotFoundError
from services.kit.grpc.validation import validate


def embedding_routes(plane: DataPlane) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["OpenAI"])

    @router.post("/v1/embeddings", response_model=Embeddings, **described(EmbeddingsBody, "Turns texts into vectors"))
    async def embeddings(request: Request) -> Response:
        body = read_body(EmbeddingsBody, await json_of(request))
        asked = EmbedRequest(
            model=str(reference(body.model)), texts=body.input, dimensions=body.dimensions, truncate=body.truncate
        )
        gone = watch_disconnect(request)
        try:
            validate(asked)
            found = await unless_gone(plane.answers.embed(asked), gone)
        except NotFoundError as error:
            raise model_not_found(body.model) from error
        except InvalidArgumentError as error:
            raise _as_sent(error) from error
        finally:
            gone.cancel()
        read = sum(item.prompt_tokens for item in found.embeddings)
        answer = Embeddings(
            data=[
                EmbeddingItem(
                    index=at,
                    embedding=list(item.values) if body.encoding_format == "float" else _base64(item.values),
                    truncated=bool(item.truncated_tokens),
                )
                for at, item in enumerate(found.embeddings)
            ],
            model=found.model_version.removeprefix("models/"),
            usage=EmbeddingsUsage(prompt_tokens=read, total_tokens=read),
        )
        return json_response(answer.model_dump(), headers=version_headers(found.model_version, found.role))

    return router


def _base64(values: Iterable[float]) -> str:
    return base64.b64encode(array("f", values).tobytes()).decode()


def _as_sent(error: InvalidArgumentError) -> InvalidArgumentError:
    """The error with the name that the field has here."""
    found = [FieldViolation(item.field.replace("texts", "input", 1), item.description) for item in error.violations]
    message = error.message.replace("`texts[", "`input[")
    return InvalidArgumentError(message, reason=error.reason, metadata=error.metadata, violations=found)
