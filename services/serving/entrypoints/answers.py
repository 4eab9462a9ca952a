"""Predict, Generate and StreamGenerate of the contract: map in, one call, map out. For every door."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import grpc
from opentelemetry import trace
from tidemill.inference.v1 import inference_service_pb2 as pb

from services.kit.errors import InternalError
from services.kit.telemetry import schema
from services.serving.app.serving import AnsweredPiece, Serving
from services.serving.domain.names import model_of
from services.serving.entrypoints import mapping

SERVICE = "tidemill.inference.v1.InferenceService"


class Answers:
    """The calls, message in and message out; messages must be valid. The current span gets the answer's attributes."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def predict(self, request: pb.PredictRequest) -> pb.PredictResponse:
        """Classifies texts."""
        found, version = await self._serving.predict(model_of(request.model), list(request.texts))
        trace.get_current_span().set_attribute(schema.MODEL_VERSION, version)
        return pb.PredictResponse(predictions=[mapping.prediction_to(item) for item in found], model_version=version)

    async def generate(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        """Writes an answer and returns it complete."""
        text: list[str] = []
        last: AnsweredPiece | None = None
        async with aclosing(self._pieces(request)) as pieces:
            async for last in pieces:
                text.append(last.piece.text)
        if last is None:
            raise InternalError("The model gave no answer.", reason="EMPTY_ANSWER")
        return mapping.whole_to("".join(text), last)

    async def stream(self, request: pb.StreamGenerateRequest) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """Writes an answer, piece by piece."""
        async with aclosing(self._pieces(request)) as pieces:
            async for piece in pieces:
                yield mapping.piece_to(piece)

    async def _pieces(self, request: pb.GenerateRequest | pb.StreamGenerateRequest) -> AsyncGenerator[AnsweredPiece]:
        model = model_of(request.model)
        span = trace.get_current_span()
        span.set_attribute(schema.GEN_AI_MODEL, model)
        sampling = mapping.sampling_from(request.sampling)
        async with aclosing(self._serving.generate(model, mapping.prompt_from(request), sampling)) as pieces:
            async for item in pieces:
                if item.piece.finish_reason:
                    span.set_attributes(
                        {
                            schema.ANSWER: item.answer,
                            schema.MODEL_VERSION: item.model_version,
                            schema.GEN_AI_INPUT_TOKENS: item.piece.prompt_tokens,
                            schema.GEN_AI_OUTPUT_TOKENS: item.piece.completion_tokens,
                        }
                    )
                yield item


def answer_handlers(answers: Answers) -> Mapping[str, Any]:
    """GRPC handlers of the three methods, by path."""

    async def predict(request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        return await answers.predict(request)

    async def generate(request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        return await answers.generate(request)

    async def stream(
        request: pb.StreamGenerateRequest, context: Any
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        async with aclosing(answers.stream(request)) as pieces:
            async for piece in pieces:
                yield piece

    return {
        f"/{SERVICE}/Predict": grpc.unary_unary_rpc_method_handler(
            predict,
            request_deserializer=pb.PredictRequest.FromString,
            response_serializer=pb.PredictResponse.SerializeToString,
        ),
        f"/{SERVICE}/Generate": grpc.unary_unary_rpc_method_handler(
            generate,
            request_deserializer=pb.GenerateRequest.FromString,
            response_serializer=pb.GenerateResponse.SerializeToString,
        ),
        f"/{SERVICE}/StreamGenerate": grpc.unary_stream_rpc_method_handler(
            stream,
            request_deserializer=pb.StreamGenerateRequest.FromString,
            response_serializer=pb.StreamGenerateResponse.SerializeToString,
        ),
    }
