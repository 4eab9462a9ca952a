"""`/v1/predict`: classifies texts, with a body that is simpler to write by hand than KServe V2's."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response
from tidemill.inference.v1.inference_service_pb2 import PredictRequest

from gateway.http.bodies import PredictBody, Prediction, PredictResponse, Span, described, read_body
from gateway.http.calls import json_of, json_response, unless_gone, user_of, version_headers, watch_disconnect
from gateway.http.openai import model_not_found, reference
from gateway.plane import DataPlane
from services.kit.errors import NotFoundError
from services.kit.grpc.validation import validate


def predict_routes(plane: DataPlane) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Predict"])

    @router.post("/v1/predict", response_model=PredictResponse, **described(PredictBody, "Classifies texts"))
    async def predict(request: Request) -> Response:
        body = read_body(PredictBody, await json_of(request))
        asked = PredictRequest(
            model=str(reference(body.model)), texts=body.texts, store=body.store, truncate=body.truncate
        )
        validate(asked)
        gone = watch_disconnect(request)
        try:
            found = await unless_gone(plane.answers.predict(asked, user_of(request, body.user)), gone)
        except NotFoundError as error:
            raise model_not_found(body.model) from error
        finally:
            gone.cancel()
        answer = PredictResponse(
            model_version=found.model_version,
            predictions=[
                Prediction(
                    answer=item.answer,
                    label=item.label,
                    score=item.score,
                    scores=dict(item.scores),
                    spans=[Span(start=s.start, end=s.end, label=s.label, score=s.score) for s in item.spans],
                    prompt_tokens=item.prompt_tokens,
                    truncated=bool(item.truncated_tokens),
                    truncated_tokens=item.truncated_tokens,
                    model_version=item.model_version,
                    labels=list(item.labels),
                )
                for item in found.predictions
            ],
        )
        return json_response(answer.model_dump(), headers=version_headers(found.model_version, found.role))

    return router
