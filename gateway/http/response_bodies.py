"""Bodies of `/v1/responses`: requests and answers, each declared once.

Source: https://platform.openai.com/docs/api-reference/responses.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, Field, Tag, model_validator
from pydantic import Discriminator as PydanticDiscriminator
from pydantic_core import PydanticCustomError

from gateway.http.bodies import (
    INT64,
    MAX_TOKENS,
    TIER_TEXT,
    Body,
    ServiceTier,
    Text,
    without_refused,
)
from gateway.http.response_items import Choice, FunctionToolBody, InputMessageBody, Item, OutputCall, OutputMessage

_NOT_KEPT = "responses are not kept; send the whole conversation as `input`"
# Options that the mesh does not offer, with the values that mean "not wanted".
_REFUSED: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({},),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
_WHY = {
    "background": "use /v1/batches",
    "conversation": _NOT_KEPT,
    "previous_response_id": _NOT_KEPT,
    "prompt": "send the text itself",
    "top_logprobs": "`include` gives the log probability of each token that was chosen, and of no others",
    "truncation": "a conversation is refused where it is too long",
}
_WITHOUT_EFFECT = frozenset(
    {
        *("access_programs", "prompt_cache_key", "prompt_cache_options"),
        "prompt_cache_retention",
    }
)


_Input = Annotated[
    Annotated[Text, Tag("~text")] | Annotated[list[Item], Field(min_length=1), Tag("~items")],
    PydanticDiscriminator(
        lambda value: "~items" if isinstance(value, list) else "~text" if isinstance(value, str) else None,
        custom_error_type="input",
        custom_error_message="must be a string or a list of messages",
    ),
]


class TextFormatBody(Body):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=64, description="of a JSON schema; without effect")
    description: str | None = Field(None, description="without effect")
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="JSON schema that the answer is valid against"
    )
    strict: bool = Field(True, description="the schema is followed either way")

    @model_validator(mode="after")
    def _agree(self) -> TextFormatBody:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise PydanticCustomError("format", "goes with `type: json_schema`, and with no other", {"at": "schema"})
        return self

    @property
    def wanted_schema(self) -> str:
        """The schema as JSON; empty if any text is an answer."""
        if self.schema_ is not None:
            return orjson.dumps(self.schema_).decode()
        return '{"type":"object"}' if self.type == "json_object" else ""


class TextBody(Body):
    """Options of the answer's text."""

    format: TextFormatBody | None = None

    @model_validator(mode="before")
    @classmethod
    def _offered(cls, value: Any) -> Any:
        return without_refused(value, {"verbosity": ("medium",)}, (), {})


class ResponseStreamOptionsBody(Body):
    """Options of a stream."""

    include_obfuscation: bool = Field(False, description="without effect")


class ResponsesBody(Body):
    """Body of a response, as OpenAI's clients send it: text, and calls of functions.

    Without `temperature` the most probable tokens are taken. `seed` and `apply_prompt_template` are Tidemill's own.
    """

    model: str = Field(examples=["headlines"])
    input: _Input = Field(
        description="the user's text, or messages, calls of functions and what these returned",
        examples=["An article ..."],
    )
    instructions: Text = Field("", description="a system message in front of the input")
    stream: bool = False
    stream_options: ResponseStreamOptionsBody | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="default: the model's limit")
    temperature: float = Field(0.0, ge=0, le=2, description="0 takes the most probable token")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-INT64 - 1, le=INT64, description="of Tidemill")
    text: TextBody | None = None
    include: list[Literal["message.output_text.logprobs"]] = Field([], description="log probability of each token")
    tools: list[FunctionToolBody] = Field(
        [], max_length=64, description="functions that a model may call whose chat template knows tools"
    )
    tool_choice: Choice = Field(
        "auto", description="auto: the model decides; required, or a function: the answer is a valid call"
    )
    parallel_tool_calls: bool = Field(False, description="an answer calls one function at most")
    metadata: dict[str, str] = Field({}, description="given back with the answer")
    apply_prompt_template: bool | None = Field(None, description="as in `/v1/chat/completions`")
    store: bool | None = Field(
        None,
        description="false: nothing of the texts is kept, also where the model's pipeline captures answers. The"
        " response itself cannot be retrieved later either way",
    )
    user: str = Field("", max_length=512, description="for whom the answer is: one user gets one version of the model")
    safety_identifier: str = Field("", max_length=512, description="as user, OpenAI's newer name of it")
    service_tier: ServiceTier = Field("auto", description=TIER_TEXT)

    @model_validator(mode="before")
    @classmethod
    def _offered(cls, value: Any) -> Any:
        return without_refused(value, _REFUSED, _WITHOUT_EFFECT, _WHY)

    @model_validator(mode="after")
    def _agree(self) -> ResponsesBody:
        if self.apply_prompt_template and not self.is_single:
            message = "needs exactly one message, the user's, and no instructions"
            raise PydanticCustomError("template", message, {"at": "apply_prompt_template"})
        if self.apply_prompt_template and self.tools:
            raise PydanticCustomError("template", "cannot go with `tools`", {"at": "apply_prompt_template"})
        if self.parallel_tool_calls and self.tools:
            message = "is not offered by this server: an answer calls one function at most, so set false"
            raise PydanticCustomError("parallel", message, {"at": "parallel_tool_calls"})
        if self.include and self.tools:
            message = "cannot go with `tools`: the tokens of a call have no place in a response"
            raise PydanticCustomError("logprobs", message, {"at": "include"})
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream", "is for `stream: true` only", {"at": "stream_options"})
        return self

    @property
    def is_single(self) -> bool:
        """Whether all of it is one text of the user."""
        if self.instructions:
            return False
        if isinstance(self.input, str):
            return True
        [first, *others] = self.input
        return not others and isinstance(first, InputMessageBody) and first.role == "user"

    @property
    def choice(self) -> str:
        """The contract's `tool_choice`; empty where there is nothing to choose."""
        if not self.tools and self.tool_choice in ("none", "auto"):
            return ""  # which clients always send
        return self.tool_choice if isinstance(self.tool_choice, str) else self.tool_choice.name


class InputTokensDetails(BaseModel):
    """Of the prompt."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Of the answer."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """The token usage of a response. `truncated_tokens` of the prompt were cut off, for the model reads no more."""

    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int
    truncated_tokens: int = 0


class IncompleteDetails(BaseModel):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(BaseModel):
    """Why a response failed."""

    code: str
    message: str


class ResponseObject(BaseModel):
    """A response. `id` names its answer for feedback, `model_version` the version that wrote it.

    `truncated`: the end of the prompt was cut off.
    """

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    model_version: str
    output: list[OutputMessage | OutputCall] = []
    parallel_tool_calls: bool = False
    previous_response_id: None = None
    service_tier: Literal["default", "flex"]
    store: bool = False
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int = 0
    top_p: float
    truncated: bool = False
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
