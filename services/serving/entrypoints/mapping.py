"""Between the contract's messages of the calls that are answered with a model, and the domain."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import model_pb2

from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.json_grammar import SchemaError, grammar_of
from services.serving.app.serving import AnsweredPiece, AnsweredPrediction
from services.serving.domain.answer import Embedded, FinishReason, Message, Prompt, Sampling, Token

_REASONS = {
    FinishReason.NONE: model_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: model_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: model_pb2.FINISH_REASON_LENGTH,
}


def prompt_from(request: pb.GenerateRequest | pb.StreamGenerateRequest) -> Prompt:
    """What is to be answered."""
    if request.WhichOneof("input") == "text":
        return Prompt(text=request.text)
    return Prompt(conversation=tuple(Message(m.role, m.content) for m in request.conversation.messages))


def sampling_from(params: model_pb2.SamplingParams) -> Sampling:
    """How tokens are to be chosen.

    Raises:
        InvalidArgumentError: the JSON schema is not valid, or asks for more than is covered.
    """
    return Sampling(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        seed=params.seed if params.HasField("seed") else None,
        stop=tuple(params.stop),
        top_k=params.top_k,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=params.repetition_penalty,
        json_schema=_checked_schema(params.json_schema),
        logprobs=params.logprobs,
    )


def _checked_schema(schema: str) -> str:
    """The model compiles it again; here its caller gets the name of the field."""
    if schema:
        try:
            grammar_of(schema)
        except SchemaError as error:
            where = FieldViolation("sampling.json_schema", str(error))
            raise InvalidArgumentError(
                f"`sampling.json_schema`: {error}", reason="INVALID_SCHEMA", violations=[where]
            ) from error
    return schema


def prediction_to(item: AnsweredPrediction) -> pb.Prediction:
    """The message of a classified text."""
    found = item.classified
    return pb.Prediction(
        answer=item.answer,
        label=found.label,
        score=found.score,
        scores=found.scores,
        spans=[pb.Span(start=s.start, end=s.end, label=s.label, score=s.score) for s in found.spans],
        prompt_tokens=found.text.prompt_tokens,
        truncated_tokens=found.text.truncated_tokens,
    )


def embedding_to(item: Embedded) -> pb.Embedding:
    """The message of an embedded text."""
    return pb.Embedding(values=item.values, prompt_tokens=item.prompt_tokens, truncated_tokens=item.truncated_tokens)


def truncates(request: pb.PredictRequest | pb.EmbedRequest) -> bool:
    """Whether texts that are too long are to be cut."""
    return request.truncate if request.HasField("truncate") else True


def piece_to(item: AnsweredPiece) -> pb.StreamGenerateResponse:
    """The message of a piece; usage in the last one only."""
    piece = item.piece
    return pb.StreamGenerateResponse(
        answer=item.answer,
        text_delta=piece.text,
        finish_reason=_REASONS[piece.finish_reason],
        usage=_usage(item) if piece.finish_reason else None,
        model_version=item.version.name,
        role=item.version.role,
        logprobs=_logprobs(piece.tokens),
    )


def whole_to(text: str, tokens: Sequence[Token], last: AnsweredPiece) -> pb.GenerateResponse:
    """The message of a whole answer."""
    return pb.GenerateResponse(
        answer=last.answer,
        text=text,
        finish_reason=_REASONS[last.piece.finish_reason],
        usage=_usage(last),
        model_version=last.version.name,
        role=last.version.role,
        logprobs=_logprobs(tokens),
    )


def _logprobs(tokens: Sequence[Token]) -> list[model_pb2.TokenLogprob]:
    return [model_pb2.TokenLogprob(token=token.text, logprob=token.logprob) for token in tokens]


def _usage(item: AnsweredPiece) -> model_pb2.Usage:
    return model_pb2.Usage(prompt_tokens=item.piece.prompt_tokens, completion_tokens=item.piece.completion_tokens)
