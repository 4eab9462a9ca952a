"""Bodies of requests and answers, each declared once: parser, validation and the schema in `/docs`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, TypeVar, cast

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Tag, ValidationError, model_validator
from pydantic import Discriminator as PydanticDiscriminator
from pydantic_core import ErrorDetails, PydanticCustomError

from services.kit.errors import FieldViolation, InvalidArgumentError

_TRUNCATE = "false: a text that is longer than the model reads is refused; otherwise it is cut at its end"
INT64 = 2**63 - 1
MAX_TOKENS = 131072

# Options that the mesh does not offer, with the values that mean "not wanted".
_REFUSED: dict[str, tuple[Any, ...]] = {
    "top_logprobs": (0,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
}
_WHY = {
    # OpenVINO GenAI 2026.4, GenerationConfig: "any logprobs > 1 is treated as logprobs == 1".
    "top_logprobs": "the engine gives the log probability of each token that it chose (`logprobs`), and of no others",
    "functions": "send `tools`",
    "function_call": "send `tool_choice`",
}
# Options that do not change the answer.
_WITHOUT_EFFECT = frozenset({"metadata", "prompt_cache_key"})
_MESSAGE_REFUSED = frozenset({"function_call", "audio"})
# `name` distinguishes speakers, and clients send the others back from an earlier answer; none changes the generation.
_MESSAGE_WITHOUT_EFFECT = frozenset({"name", "refusal", "annotations"})

B = TypeVar("B", bound="Body")
ServiceTier = Literal["auto", "default", "flex", "priority", "scale"]
TIER_TEXT = "flex: others come first, as for a batch; the other values are without effect"


class Body(BaseModel):
    """What a caller sends: values are not converted, unknown fields are refused, `null` counts as left out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise PydanticCustomError("object", "must be an object")
        return {name: item for name, item in value.items() if item is not None}


def not_offered(name: str, why: str = "") -> PydanticCustomError:
    """The error for an option that this server does not have."""
    message = "is not offered by this server" + (f": {why}" if why else "")
    return PydanticCustomError("not_offered", cast("Any", message), {"at": name})


def without_refused(
    value: Any, refused: Mapping[str, tuple[Any, ...]], without_effect: Collection[str], why: Mapping[str, str]
) -> Any:
    """A body without options that this server does not have.

    Args:
        value: the body; what is not an object is returned as it is.
        refused: options, with the values that mean "not wanted".
        without_effect: options that do not change the answer.
        why: of a refused option, or what to do instead.
    """
    if not isinstance(value, dict):
        return value
    for name, harmless in refused.items():
        item = value.get(name)
        if item is not None and item not in harmless:
            raise not_offered(name, why.get(name, ""))
    return {name: value[name] for name in value if name not in refused and name not in without_effect}


def _without_nul(value: Any) -> Any:
    # The runtimes' tokenizers take NUL as the end of the text.
    if isinstance(value, str) and "\0" in value:
        raise PydanticCustomError("nul", "has a NUL character (U+0000); remove it")
    return value


Text = Annotated[str, BeforeValidator(_without_nul)]


class TextPart(Body):
    """A piece of a message's text."""

    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("type") != "text" or not isinstance(value.get("text"), str):
            raise PydanticCustomError("part", "is not a text part; only text is offered by this server")
        return value


Content = Annotated[
    Annotated[Text, Tag("~text")] | Annotated[list[TextPart], Tag("~parts")],
    PydanticDiscriminator(
        lambda value: "~parts" if isinstance(value, list) else "~text" if isinstance(value, str) else None,
        custom_error_type="content",
        custom_error_message="must be a string or a list of text parts",
    ),
]


class CalledFunctionBody(Body):
    """A function that was called."""

    name: Text
    arguments: Text = Field(description="a JSON object, as text")


class ToolCallBody(Body):
    """A call of a function, as an earlier answer had it."""

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunctionBody


class FunctionBody(Body):
    """A function that the model may call."""

    name: Text = Field(examples=["get_weather"])
    description: Text = ""
    parameters: dict[str, Any] = Field({}, description="JSON schema of its arguments, an object")
    strict: bool = Field(True, description="the schema is followed either way")


class ToolBody(Body):
    """A tool; functions are offered."""

    type: Literal["function"]
    function: FunctionBody


class NamedFunctionBody(Body):
    """The name of a function."""

    name: str


class ToolChoiceBody(Body):
    """The function that is to be called."""

    type: Literal["function"] = "function"
    function: NamedFunctionBody


class ChatMessageBody(Body):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(examples=["user"])
    content: Content = Field(
        "",
        examples=["Write a headline for this article.\n\n..."],
        description="may be left out for an assistant's message only",
        validate_default=False,
    )
    tool_calls: list[ToolCallBody] = Field([], description="of an assistant: functions that it called")
    tool_call_id: Text = Field("", description="of a tool: the call that it answers")

    @model_validator(mode="before")
    @classmethod
    def _offered(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise PydanticCustomError("object", "must be an object with `role` and `content`")
        for name in _MESSAGE_REFUSED:
            if value.get(name):
                raise not_offered(name, _WHY.get(name, ""))
        # An assistant's message that is a tool call has no text, and clients send it without content.
        if value.get("content") is None and value.get("role") in ("system", "developer", "user", "tool"):
            raise PydanticCustomError("content", "must be a string or a list of text parts", {"at": "content"})
        return {name: value[name] for name in value.keys() - _MESSAGE_REFUSED - _MESSAGE_WITHOUT_EFFECT}

    @model_validator(mode="after")
    def _agree(self) -> ChatMessageBody:
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("calls", "is for an assistant's message only", {"at": "tool_calls"})
        if bool(self.tool_call_id) != (self.role == "tool"):
            message = "is required for a tool's message, and for no other"
            raise PydanticCustomError("calls", message, {"at": "tool_call_id"})
        return self

    @property
    def text(self) -> str:
        """Its whole text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptionsBody(Body):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = Field(False, description="without effect")

    @model_validator(mode="before")
    @classmethod
    def _is_known(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.keys() - {"include_usage", "include_obfuscation"}:
            raise PydanticCustomError("options", "must be an object with `include_usage`")
        return value


def _texts(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 0 < len(texts) <= 2048 or not all(isinstance(t, str) and t for t in texts):
        message = "must be a text, or 1 to 2048 texts, none of them empty; send texts, not tokens of another model"
        raise PydanticCustomError("texts", message)
    return texts


def _stops(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > 8
        or not all(isinstance(s, str) and 0 < len(s) <= 256 for s in stops)
    ):
        raise PydanticCustomError("stop", "must be a string or up to 8 strings of 1 to 256 characters")
    return stops


Stops = Annotated[list[str], BeforeValidator(_stops)]


class NamedSchemaBody(Body):
    """A JSON schema as OpenAI's clients send it."""

    name: str = Field(max_length=64, description="without effect")
    description: str = Field("", description="without effect")
    schema_: dict[str, Any] = Field(alias="schema", description="JSON schema that the answer is valid against")
    strict: bool = Field(True, description="the schema is followed either way")


class ResponseFormatBody(Body):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchemaBody | None = None

    @model_validator(mode="after")
    def _agree(self) -> ResponseFormatBody:
        if (self.type == "json_schema") != (self.json_schema is not None):
            message = "goes with `type: json_schema`, and with no other"
            raise PydanticCustomError("format", message, {"at": "json_schema"})
        return self

    @property
    def wanted_schema(self) -> str:
        """The schema as JSON; empty if any text is an answer."""
        match self.type, self.json_schema:
            case "json_object", _:
                return '{"type":"object"}'
            case "json_schema", NamedSchemaBody() as named:
                return orjson.dumps(named.schema_).decode()
            case _:
                return ""


class ChatBody(Body):
    """Body of a chat completion, as OpenAI's clients send it.

    Source: https://platform.openai.com/docs/api-reference/chat. Without `temperature` the most probable tokens are
    taken. `apply_prompt_template` is Tidemill's own: false leaves every conversation unchanged.
    """

    model: str = Field(examples=["headlines"])
    messages: list[ChatMessageBody] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptionsBody | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="as max_completion_tokens")
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="default: the model's limit")
    temperature: float = Field(0.0, ge=0, le=2, description="0 takes the most probable token")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-INT64 - 1, le=INT64)
    stop: Stops = Field([], description="a text, or up to 8")
    n: int = Field(1, ge=1, le=8, description="answers to the same messages")
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    top_k: int = Field(0, ge=0, le=100_000, description="of Tidemill: 0 chooses from all tokens")
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="of Tidemill")
    logprobs: bool = Field(False, description="log probability of each token")
    response_format: ResponseFormatBody | None = None
    tools: list[ToolBody] = Field(
        [], max_length=64, description="functions that a model may call whose chat template knows tools"
    )
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceBody = Field(
        "auto", description="auto: the model decides; required, or a function: the answer is a valid call"
    )
    parallel_tool_calls: bool = Field(False, description="an answer calls one function at most")
    apply_prompt_template: bool | None = Field(
        None,
        description="puts the one user message into the prompt that the model was trained on; when left out, that is"
        " done if the model has such a prompt (see `/v1/models`) and the user's message is the only one",
    )

    store: bool | None = Field(
        None, description="false: nothing of the texts is kept, also where the model's pipeline captures answers"
    )

    @model_validator(mode="before")
    @classmethod
    def _offered(cls, value: Any) -> Any:
        return without_refused(value, _REFUSED, _WITHOUT_EFFECT, _WHY)

    user: str = Field("", max_length=512, description="for whom the answer is: one user gets one version of the model")
    safety_identifier: str = Field("", max_length=512, description="as user, OpenAI's newer name of it")
    service_tier: ServiceTier = Field("auto", description=TIER_TEXT)

    @model_validator(mode="after")
    def _agree(self) -> ChatBody:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise PydanticCustomError("differ", "differs from `max_completion_tokens`", {"at": "max_tokens"})
        if self.apply_prompt_template and (len(self.messages) != 1 or self.messages[0].role != "user"):
            message = "needs exactly one message, the user's"
            raise PydanticCustomError("template", message, {"at": "apply_prompt_template"})
        if self.apply_prompt_template and self.tools:
            raise PydanticCustomError("template", "cannot go with `tools`", {"at": "apply_prompt_template"})
        if self.parallel_tool_calls and self.tools:
            message = "is not offered by this server: an answer calls one function at most, so set false"
            raise PydanticCustomError("parallel", message, {"at": "parallel_tool_calls"})
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream", "is for `stream: true` only", {"at": "stream_options"})
        return self


class PredictBody(Body):
    """Texts for a classifier."""

    model: str = Field(examples=["reviews"])
    texts: list[Text] = Field(min_length=1, max_length=256, examples=[["房间很干净，服务也好"]])
    user: str = Field("", max_length=512, description="for whom the answer is: one user gets one version of the model")
    store: bool | None = Field(None, description="false: nothing of the texts is kept")
    truncate: bool | None = Field(None, description=_TRUNCATE)


class EmbeddingsBody(Body):
    """Texts for an encoder, as OpenAI's clients send them. `truncate` is Tidemill's own.

    Source: https://platform.openai.com/docs/api-reference/embeddings.
    """

    model: str = Field(examples=["reviews"])
    input: Annotated[list[Text], BeforeValidator(_texts)] = Field(
        description="a text, or up to 2048", examples=[["房间很干净，服务也好"]]
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: 32-bit little-endian floats, which clients decode faster than numbers"
    )
    dimensions: int = Field(0, ge=0, description="how many of the first to keep, normalised again; all when left out")
    user: str = Field("", max_length=512, description="without effect: one version answers all users")
    truncate: bool | None = Field(None, description=_TRUNCATE)


class FeedbackBody(Body):
    """A judgement of an answer."""

    answer: str = Field(examples=["answers/01j..."], description="id of the answer, as the completion's `id`")
    rating: float | None = Field(None, ge=-1, le=1, description="-1 (bad) to 1 (good); needed if nothing else is said")
    correction: str = Field("", description="what the answer should have been, of a model that writes")
    label: str = Field("", description="the right label, of a classifier")
    comment: str = ""
    episode: str = Field("", description="what several answers of one session have in common")
    signal: Literal["", "accepted", "edited", "retried"] = Field("", description="what the person did with the answer")
    author: str = ""

    @model_validator(mode="after")
    def _says_something(self) -> FeedbackBody:
        if self.rating is None and not (self.correction or self.label or self.comment or self.signal):
            message = "is required unless there is a correction, label, comment or signal"
            raise PydanticCustomError("nothing", message, {"at": "rating"})
        return self


class JudgementBody(FeedbackBody):
    """A judgement of a batch."""

    request_id: str = Field("", description="makes a repeat harmless")


class FeedbackBatchBody(Body):
    """Judgements of several answers: all or none are recorded."""

    judgements: list[JudgementBody] = Field(min_length=1, max_length=1000)


class RecordBody(Body):
    """One raw record; the service validates it."""

    source: str = Field("", examples=["support-tickets"])
    text: str = ""
    record_id: str = Field("", description="derived from source and content when empty")
    attributes: dict[str, str] = {}
    event_time: str = Field("", description="RFC 3339")


class RecordsBody(Body):
    """A batch: all or nothing is accepted."""

    records: list[RecordBody] = Field(min_length=1, max_length=1000)
    request_id: str = Field("", description="a repeat with the same id is not stored again")


class AlertmanagerAlert(BaseModel):
    """One alert of Alertmanager's webhook."""

    status: Literal["firing", "resolved"]
    labels: dict[str, str] = Field(description="`alertname`, and `pipeline`: the one whose triggers it concerns")
    annotations: dict[str, str] = {}
    startsAt: str  # noqa: N815 - Alertmanager's name
    fingerprint: str


class AlertsBody(Body):
    """What Alertmanager posts to a webhook, version 4; fields that are not read are left out here."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    alerts: list[AlertmanagerAlert] = Field(max_length=1000)


class Span(BaseModel):
    """A named part of a text."""

    start: int = Field(description="its first character, counted in Unicode code points from zero")
    end: int = Field(description="the character after its last")
    label: str
    score: float = Field(description="mean probability of its tokens")


class ReadText(BaseModel):
    """A text that a model read."""

    prompt_tokens: int = Field(description="tokens that the model read")
    truncated: bool = Field(description="whether its end was cut off, for the model reads no more")
    truncated_tokens: int = Field(description="tokens that were cut off")


class Prediction(ReadText):
    """One classified text, or one whose named parts were found."""

    answer: str = Field(description="id, for feedback")
    label: str
    score: float = Field(description="probability of the label")
    scores: dict[str, float] = Field(description="probability of every label")
    labels: list[str] = Field([], description="what a model of multi-label classification assigned, best first")
    spans: list[Span] = Field([], description="what a model of token classification found")
    model_version: str = Field("", description="the version that answered: with a cascade, of this or the larger model")


class PredictResponse(BaseModel):
    """One prediction for each text, in order, and the version that made them."""

    model_version: str
    predictions: list[Prediction]


class FeedbackResponse(BaseModel):
    """A recorded judgement; with `warning` if its answer is not known yet."""

    name: str
    answer: str
    rating: float
    correction: str = Field(description="masked, as it is stored")
    author: str
    model_version: str
    label: str = ""
    warning: str | None = None


class FeedbackBatchResponse(BaseModel):
    """Recorded judgements, in the order of the batch."""

    feedback: list[FeedbackResponse]


class AlertsResponse(BaseModel):
    """How many alerts some pipeline's triggers name, of how many."""

    taken: int
    received: int


class RecordsResponse(BaseModel):
    """Identities, in the order of the batch."""

    record_ids: list[str]


def read_body(model: type[B], value: Any) -> B:
    """The body of a request.

    Raises:
        InvalidArgumentError: names the first field that is wrong, unknown or not offered.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = _path(first)
        message = _sentence(path, first)
        raise InvalidArgumentError(
            message, reason="INVALID_FIELD", violations=[FieldViolation(path, message)]
        ) from error


def _path(error: ErrorDetails) -> str:
    path = ""
    inner = error.get("ctx", {}).get("at")
    for step in (*error["loc"], *([inner] if inner else [])):
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith("~"):
            path += f".{step}" if path else step
    return path or "body"


def _sentence(path: str, error: ErrorDetails) -> str:
    match error["type"]:
        case "missing":
            return f"`{path}` is required."
        case "extra_forbidden":
            return f"Unrecognized request argument supplied: {path}"
        case _:
            return f"`{path}` {re.sub('^Input should be', 'must be', error['msg'])}."


def described(model: type[BaseModel], summary: str) -> dict[str, Any]:
    """The OpenAPI description of a route that reads this body."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    return {
        "summary": summary,
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": _inline(schema, definitions)}}}
        },
    }


def _inline(value: Any, definitions: dict[str, Any]) -> Any:
    """The schema with its definitions inlined, since the OpenAPI document has no place for those of our own schemas."""
    if isinstance(value, dict):
        if reference := value.get("$ref"):
            return _inline(definitions[str(reference).rpartition("/")[2]], definitions)
        return {key: _inline(item, definitions) for key, item in value.items()}
    if isinstance(value, list):
        return [_inline(item, definitions) for item in value]
    return value
