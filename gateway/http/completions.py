"""Responses of the OpenAI-compatible routes: one declaration for the OpenAPI document and for the responses."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Usage(BaseModel):
    """The token usage of a request. `truncated_tokens` of the prompt were cut off, for the model reads no more."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    truncated_tokens: int = 0


class CalledFunction(BaseModel):
    """A function that is called; `arguments` is a JSON object."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of a function."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class TokenLogprob(BaseModel):
    """A token and the natural logarithm of its probability; `bytes` is null within a character of several tokens."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[None] = []


class ChoiceLogprobs(BaseModel):
    """The tokens of a choice."""

    content: list[TokenLogprob]
    refusal: None = None


class Choice(BaseModel):
    """An answer. `answer` is its name, for feedback."""

    index: int
    message: Message
    logprobs: ChoiceLogprobs | None
    finish_reason: str
    answer: str


class Completion(BaseModel):
    """Complete answers. `id` names the first one for feedback; `system_fingerprint` is its model version.

    `truncated`: the end of the prompt was cut off.
    """

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    service_tier: Literal["default", "flex"]
    system_fingerprint: str
    choices: list[Choice]
    truncated: bool
    usage: Usage


class EmbeddingsUsage(BaseModel):
    """The token usage of embeddings."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(BaseModel):
    """A text's embedding: numbers, or 32-bit little-endian floats in base64. `truncated`: its end was cut off."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    truncated: bool


class Embeddings(BaseModel):
    """One embedding for each text, in order. `model` names the version: only its own embeddings are comparable."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingsUsage


class ModelCard(BaseModel):
    """A model that answers, with its serving version."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["tidemill"] = "tidemill"
    version: str
    task: str
    precision: str
    labels: list[str]
    embedding_size: int
    prompt_template: str


class ModelList(BaseModel):
    """All models that answer."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
