"""Between the contract's messages of the calls that are answered with a model, and the domain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import model_pb2

from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.json_grammar import SchemaError, call_grammar, grammar_of
from services.serving.app.serving import AnsweredPiece, AnsweredPrediction
from services.serving.domain.answer import Embedded, FinishReason, Message, Prompt, Sampling, Token, ToolCall

_REASONS = {
    FinishReason.NONE: model_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: model_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: model_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: model_pb2.FINISH_REASON_TOOL_CALLS,
}


def prompt_from(request: pb.GenerateRequest | pb.StreamGenerateRequest) -> Prompt:
    """What is to be answered."""
    tools = _tools_from(request)
    if request.WhichOneof("input") == "text":
        if tools:
            raise _refused("tools", "go with a conversation, not with a text", "INVALID_FIELD")
        return Prompt(text=request.text)
    return Prompt(
        conversation=tuple(map(_message_from, request.conversation.messages)),
        tools=tools,
        tool_choice=(request.tool_choice or "auto") if tools else "",
    )


def _message_from(message: model_pb2.ChatMessage) -> Message:
    calls = tuple(ToolCall(call.id, call.name, _object(call.arguments)) for call in message.tool_calls)
    return Message(message.role, message.content, calls, message.tool_call_id)


def _object(arguments: str) -> str:
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _refused("conversation.messages", "has a call whose arguments are not a JSON object", "INVALID_FIELD")
    return arguments or "{}"


def _tools_from(request: pb.GenerateRequest | pb.StreamGenerateRequest) -> str:
    """The tools as JSON; empty where none may be called.

    Raises:
        InvalidArgumentError: two have one name, the choice is none of them, or the parameters of one are not a schema
            that is covered.
    """
    choice, names = request.tool_choice or "auto", [tool.name for tool in request.tools]
    if len(set(names)) < len(names):
        raise _refused("tools", "have two of one name", "INVALID_FIELD")
    if choice not in ("auto", "none", *(["required"] if names else []), *names):
        raise _refused("tool_choice", "is not auto, none, required or the name of one of the tools", "INVALID_FIELD")
    if not names or choice == "none":
        return ""
    if request.sampling.json_schema:
        raise _refused("tools", "cannot be given together with a JSON schema of the answer", "INVALID_FIELD")
    try:
        tools = json.dumps([_tool(tool) for tool in request.tools], ensure_ascii=False)
        call_grammar(tools, choice)
    except SchemaError as error:
        raise _refused("tools", f"cannot be followed: {str(error).rstrip('.')}", "INVALID_SCHEMA") from error
    return tools


def _tool(tool: model_pb2.Tool) -> dict[str, Any]:
    """As OpenAI's API and chat templates have it."""
    try:
        parameters = json.loads(tool.parameters or '{"type": "object", "properties": {}}')
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{tool.name}.parameters", f"is not JSON: {error}.") from None
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _refused(field: str, why: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"`{field}` {why}.", reason=reason, violations=[FieldViolation(field, why)])


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
        model_version=item.version.name,
        labels=found.labels or (),
    )


def embedding_to(item: Embedded) -> pb.Embedding:
    """The message of an embedded text."""
    return pb.Embedding(values=item.values, prompt_tokens=item.prompt_tokens, truncated_tokens=item.truncated_tokens)


def truncates(request: pb.PredictRequest | pb.EmbedRequest) -> bool:
    """Whether texts that are too long are to be cut."""
    return request.truncate if request.HasField("truncate") else True


def piece_to(item: AnsweredPiece, calls: Sequence[ToolCall] = ()) -> pb.StreamGenerateResponse:
    """The message of a piece, with parts of the call of a function; usage in the last one only."""
    piece = item.piece
    return pb.StreamGenerateResponse(
        answer=item.answer,
        text_delta=piece.text,
        finish_reason=_REASONS[piece.finish_reason],
        usage=_usage(item) if piece.finish_reason else None,
        model_version=item.version.name,
        role=item.version.role,
        logprobs=_logprobs(piece.tokens),
        tool_calls=map(_call_to, calls),
    )


def whole_to(
    text: str, tokens: Sequence[Token], last: AnsweredPiece, calls: Sequence[ToolCall] = ()
) -> pb.GenerateResponse:
    """The message of a whole answer, with the functions that it calls."""
    return pb.GenerateResponse(
        answer=last.answer,
        text=text,
        finish_reason=_REASONS[last.piece.finish_reason],
        usage=_usage(last),
        model_version=last.version.name,
        role=last.version.role,
        logprobs=_logprobs(tokens),
        tool_calls=map(_call_to, calls),
    )


def _call_to(call: ToolCall) -> model_pb2.ToolCall:
    return model_pb2.ToolCall(id=call.call_id, name=call.name, arguments=call.arguments)


def _logprobs(tokens: Sequence[Token]) -> list[model_pb2.TokenLogprob]:
    return [model_pb2.TokenLogprob(token=token.text, logprob=token.logprob) for token in tokens]


def _usage(item: AnsweredPiece) -> model_pb2.Usage:
    piece = item.piece
    return model_pb2.Usage(
        prompt_tokens=piece.prompt_tokens,
        completion_tokens=piece.completion_tokens,
        truncated_tokens=piece.truncated_tokens,
    )
