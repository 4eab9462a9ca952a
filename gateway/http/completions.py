"""Responses of the OpenAI-compatible routes: one declaration for the OpenAPI document and for the responses."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Usage(BaseModel):
    """The token usage of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Message(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The only choice of a completion."""

    index: Literal[0] = 0
    message: Message
    logprobs: None = None
    finish_reason: str


class Completion(BaseModel):
    """A complete answer. `id` names the answer for feedback; `system_fingerprint` is the model version."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


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
    prompt_template: str


class ModelList(BaseModel):
    """All models that answer."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
