"""Requests out of plain values, and plain values out of responses; for both clients."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from tidemill_client._protos.tidemill.inference.v1 import inference_service_pb2 as inference
from tidemill_client._protos.tidemill.inference.v1 import model_pb2
from tidemill_client._protos.tidemill.pipeline.v1 import pipeline_service_pb2 as pipeline
from tidemill_client.answers import (
    Answer,
    Embedding,
    Embeddings,
    Judgement,
    Message,
    Piece,
    Prediction,
    Predictions,
    Sampling,
    Span,
    TokenLogprob,
)

T = TypeVar("T")

_OPTIONS = (
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logprobs",
)
_JUDGED = ("answer", "rating", "label", "correction", "comment", "episode", "author")
MAX_TEXTS = 256
"""Texts of one request; longer lists are sent as several."""
MAX_JUDGEMENTS = 1000
"""The same for judgements."""


def predict(model: str, texts: Sequence[str], truncate: bool, store: bool | None) -> Any:
    return inference.PredictRequest(model=_named(model), texts=texts, truncate=truncate, store=store)


def embed(model: str, texts: Sequence[str], dimensions: int | None, truncate: bool) -> Any:
    request = inference.EmbedRequest(model=_named(model), texts=texts, truncate=truncate)
    if dimensions is not None:
        request.dimensions = dimensions
    return request


def generate(
    kind: Any,
    model: str,
    text: str | None,
    messages: Iterable[Message | tuple[str, str]] | None,
    sampling: Sampling | None,
    store: bool | None,
) -> Any:
    """A request of Generate or StreamGenerate."""
    if (text is None) == (messages is None):
        raise ValueError("give either `text` or `messages`")
    request = kind(model=_named(model), store=store)
    if text is not None:
        request.text = text
    for message in messages or ():
        role, content = (message.role, message.content) if isinstance(message, Message) else message
        request.conversation.messages.add(role=role, content=content)
    if sampling is not None:
        for name in _OPTIONS:
            if (value := getattr(sampling, name)) is not None:
                setattr(request.sampling, name, value)
        request.sampling.stop.extend(sampling.stop)
        if (schema := sampling.json_schema) is not None:
            request.sampling.json_schema = schema if isinstance(schema, str) else json.dumps(schema)
    return request


def feedback(judgement: Judgement) -> Any:
    return _filled(pipeline.RecordFeedbackRequest(), judgement)


def feedback_batch(judgements: Sequence[Judgement]) -> Any:
    found = [_filled(pipeline.Judgement(), judgement) for judgement in judgements]
    return pipeline.BatchRecordFeedbackRequest(request_id=uuid.uuid4().hex, judgements=found)


def _filled(message: Any, judgement: Judgement) -> Any:
    # The id makes a repeated attempt harmless.
    message.request_id = uuid.uuid4().hex
    for name in _JUDGED:
        setattr(message, name, getattr(judgement, name))
    if judgement.signal:
        message.signal = f"FEEDBACK_SIGNAL_{judgement.signal.upper()}"
    return message


def predictions(responses: Iterable[Any]) -> Predictions:
    found = Predictions()
    for response in responses:
        found.model_version = response.model_version
        found += [
            Prediction(
                item.answer,
                item.label,
                item.score,
                dict(item.scores),
                item.prompt_tokens,
                item.truncated_tokens,
                [Span(span.start, span.end, span.label, span.score) for span in item.spans],
                item.model_version,
                list(item.labels),
            )
            for item in response.predictions
        ]
    return found


def embeddings(response: Any) -> Embeddings:
    found = Embeddings(
        Embedding(list(item.values), item.prompt_tokens, item.truncated_tokens) for item in response.embeddings
    )
    found.model_version = response.model_version
    return found


def answer(response: Any) -> Answer:
    return Answer(
        response.answer,
        response.text,
        response.model_version,
        _reason(response.finish_reason),
        response.usage.prompt_tokens,
        response.usage.completion_tokens,
        _logprobs(response),
        response.usage.truncated_tokens,
    )


def piece(response: Any) -> Piece:
    return Piece(
        response.answer,
        response.text_delta,
        response.model_version,
        _reason(response.finish_reason),
        response.usage.prompt_tokens,
        response.usage.completion_tokens,
        _logprobs(response),
        response.usage.truncated_tokens,
    )


def parts(items: Sequence[T], size: int = MAX_TEXTS) -> list[Sequence[T]]:
    """Texts, or other items, in requests of at most `size`."""
    return [items[at : at + size] for at in range(0, len(items), size)]


def user_of(user: str | None, count: int) -> str | None:
    """For whom `count` requests of one call are: for the same user, so that one version answers all of them."""
    return uuid.uuid4().hex if user is None and count > 1 else user


def _named(model: str) -> str:
    return model if model.startswith("models/") else f"models/{model}"


def _logprobs(response: Any) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(item.token, item.logprob) for item in response.logprobs)


def _reason(number: Any) -> str:
    name = model_pb2.FinishReason.Name(number).removeprefix("FINISH_REASON_").lower()
    return "" if name == "unspecified" else name
