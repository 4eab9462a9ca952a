"""What the OpenAPI document says of bodies that are read by hand.

On the hot path the bodies are read without pydantic; these models exist for the document alone.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class ChatMessageBody(BaseModel):
    """One message."""

    role: str = Field(examples=["user"], description="system, developer, user or assistant")
    content: str = Field(examples=["Write a headline for this article.\n\n..."])


class StreamOptionsBody(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class ChatBody(BaseModel):
    """Body of a chat completion, as OpenAI's clients send it."""

    model: str = Field(examples=["headlines"])
    messages: list[ChatMessageBody]
    stream: bool = False
    stream_options: StreamOptionsBody | None = None
    max_completion_tokens: int | None = Field(None, ge=1, description="also as max_tokens; else the model's own limit")
    temperature: float = Field(0.0, ge=0, le=2, description="0 takes the most probable token")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = Field(None, description="up to 8 texts")
    apply_prompt_template: bool = Field(
        False, description="Tidemill's own: wrap the one user message into the prompt that the model was trained on"
    )


class FeedbackBody(BaseModel):
    """A judgement of an answer."""

    answer: str = Field(examples=["answers/01j..."], description="id of the answer, as the completion's `id`")
    rating: float = Field(ge=-1, le=1, description="-1 (bad) to 1 (good)")
    correction: str = Field("", description="what the answer should have been")
    author: str = ""


class RecordBody(BaseModel):
    """One raw record."""

    source: str = Field(examples=["support-tickets"])
    text: str
    record_id: str = Field("", description="derived from source and content when empty")
    attributes: dict[str, str] = {}
    event_time: str | None = Field(None, description="RFC 3339")


class RecordsBody(BaseModel):
    """A batch: all or nothing is accepted."""

    records: list[RecordBody] = Field(min_length=1, max_length=1000)
    request_id: str = Field("", description="makes a repeat harmless")


class TensorBody(BaseModel):
    """A tensor of KServe V2."""

    name: str
    shape: list[int]
    datatype: str = Field(examples=["BYTES"])
    data: list[Any] | None = Field(None, description="row-major; absent with the binary tensor data extension")
    parameters: dict[str, Any] = {}


class InferBody(BaseModel):
    """Body of KServe V2's infer."""

    id: str = ""
    inputs: list[TensorBody]
    outputs: list[dict[str, Any]] = []
    parameters: dict[str, Any] = {}


def _docs(model: type[BaseModel], summary: str) -> dict[str, Any]:
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    return {
        "summary": summary,
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": _inline(schema, definitions)}}}
        },
    }


def _inline(value: Any, definitions: dict[str, Any]) -> Any:
    """The schema with its definitions in place: the document has no common place for hand-made ones."""
    if isinstance(value, dict):
        if reference := value.get("$ref"):
            return _inline(definitions[str(reference).rpartition("/")[2]], definitions)
        return {key: _inline(item, definitions) for key, item in value.items()}
    if isinstance(value, list):
        return [_inline(item, definitions) for item in value]
    return value


CHAT_DOCS = _docs(ChatBody, "Writes an answer, whole or as server-sent events")
MODELS_DOCS: dict[str, Any] = {"summary": "Lists the models that answer"}
FEEDBACK_DOCS = _docs(FeedbackBody, "Records a judgement of an answer")
RECORDS_DOCS = _docs(RecordsBody, "Accepts a batch of raw records; answers when it is durable")
INFER_DOCS = _docs(InferBody, "Infers (JSON, or JSON and binary tensor data)")
