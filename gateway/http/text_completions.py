"""`/v1/completions`: OpenAI's older way to ask for texts, which many tools still use.

Source: https://platform.openai.com/docs/api-reference/completions. A prompt is put into the prompt that the model was
trained on, as a single user message of a chat is; `apply_prompt_template: false` leaves it as it is. There is no
continuation of a text without the model's chat template. Options that are not offered are refused by name.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response
from tidemill.inference.v1.inference_service_pb2 import GenerateResponse, StreamGenerateResponse
from tidemill.inference.v1.model_pb2 import ChatMessage, Conversation, SamplingParams, TokenLogprob, Usage

from gateway.http import completions
from gateway.http.bodies import (
    INT64,
    MAX_TOKENS,
    Body,
    Stops,
    StreamOptionsBody,
    Text,
    described,
    read_body,
    without_refused,
)
from gateway.http.calls import json_of, json_response, user_of, version_headers
from gateway.http.errors import openai_error
from gateway.http.generation import streamed, whole
from gateway.http.openai import FINISH, ChatCall, as_sent, event, model_not_found, reference, usage_of
from gateway.plane import DataPlane
from services.kit.errors import InvalidArgumentError, NotFoundError, TidemillError
from services.kit.grpc.validation import validate

_MAX_PROMPTS = 64
_REFUSED: dict[str, tuple[Any, ...]] = {"best_of": (1,), "logit_bias": ({},), "suffix": ("",)}
_WHY = {"best_of": "`n` gives several texts to choose from"}


def _prompts(value: Any) -> Any:
    prompts = [value] if isinstance(value, str) else value
    if (
        not isinstance(prompts, list)
        or not 0 < len(prompts) <= _MAX_PROMPTS
        or not all(isinstance(prompt, str) and prompt for prompt in prompts)
    ):
        message = (
            f"must be a text, or 1 to {_MAX_PROMPTS} texts, none of them empty; send texts, not tokens of another model"
        )
        raise PydanticCustomError("prompts", message)
    return prompts


class TextCompletionBody(Body):
    """Body of a completion, as OpenAI's clients send it. `top_k` and `repetition_penalty` are Tidemill's own.

    Without `temperature` the most probable tokens are taken, without `max_tokens` the model's limit counts.
    """

    model: str = Field(examples=["headlines"])
    prompt: Annotated[list[Text], BeforeValidator(_prompts)] = Field(
        description=f"a text, or up to {_MAX_PROMPTS}", examples=["An article ..."]
    )
    n: int = Field(1, ge=1, le=8, description="texts for each prompt")
    echo: bool = Field(False, description="whether each text begins with its prompt")
    logprobs: Literal[0, 1] | None = Field(
        None,
        description="0: log probability of each token; 1: with the most probable token of each place, which is the"
        " chosen one; where it may be another, 1 is refused",
    )
    stream: bool = False
    stream_options: StreamOptionsBody | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="default: the model's limit")
    temperature: float = Field(0.0, ge=0, le=2, description="0 takes the most probable token")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-INT64 - 1, le=INT64)
    stop: Stops = Field([], description="a text, or up to 8")
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    top_k: int = Field(0, ge=0, le=100_000, description="of Tidemill: 0 chooses from all tokens")
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="of Tidemill")
    apply_prompt_template: bool = Field(True, description="puts each prompt into the one that the model was trained on")
    store: bool | None = Field(None, description="false: nothing of the texts is kept")
    user: str = Field("", max_length=512, description="for whom the answer is: one user gets one version of the model")

    @model_validator(mode="before")
    @classmethod
    def _offered(cls, value: Any) -> Any:
        return without_refused(value, _REFUSED, (), _WHY)

    @model_validator(mode="after")
    def _agree(self) -> TextCompletionBody:
        if self.n * len(self.prompt) > _MAX_PROMPTS:
            message = f"is too large: {len(self.prompt)} prompts may have {_MAX_PROMPTS} texts together"
            raise PydanticCustomError("many", message, {"at": "n"})
        if self.echo and self.logprobs is not None:
            message = "cannot go with `echo`: the engine gives no log probabilities of a prompt's tokens"
            raise PydanticCustomError("echo", message, {"at": "logprobs"})
        if self.logprobs and (
            self.temperature or self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1.0
        ):
            message = (
                "must be 0 unless `temperature` is 0 and there is no penalty: the engine gives the chosen tokens only"
            )
            raise PydanticCustomError("top", message, {"at": "logprobs"})
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream", "is for `stream: true` only", {"at": "stream_options"})
        return self


class TextLogprobs(BaseModel):
    """The tokens of a text, and where each begins in it, in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    """A text. `answer` is its name, for feedback; `truncated`: the end of its prompt was cut off."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str
    answer: str
    truncated: bool


class TextCompletion(BaseModel):
    """Complete texts, prompt by prompt. `id` names the first one for feedback; `system_fingerprint` is its version."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    truncated: bool
    usage: completions.Usage


@dataclass(frozen=True, slots=True)
class TextCall:
    """A parsed request."""

    body: TextCompletionBody
    prompts: tuple[ChatCall, ...]

    @property
    def model(self) -> str:
        """The id as callers write it."""
        return self.prompts[0].model

    def echo(self, index: int) -> str:
        """What an answer begins with."""
        return self.body.prompt[index // self.body.n] if self.body.echo else ""


def text_completion_routes(plane: DataPlane) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/v1/completions",
        response_model=TextCompletion,
        **described(TextCompletionBody, "Writes texts, whole or as server-sent events"),
    )
    async def text_completions(request: Request) -> Response:
        call = read_text_completion(await json_of(request))
        user, created = user_of(request, call.body.user), int(time.time())
        _check(call)
        try:
            if call.body.stream:
                pieces = [item for prompt in call.prompts for item in prompt.streamed()]
                return await streamed(plane, request, pieces, user, TextEvents(call, created), call.body.n)
            asked = [item for prompt in call.prompts for item in prompt.whole()]
            answers = await whole(plane, request, asked, user, call.body.n)
        except NotFoundError as error:
            raise model_not_found(call.model) from error
        except InvalidArgumentError as error:
            raise as_sent(error, lambda name: _sent_name(name, 0)) from error
        headers = version_headers(answers[0].model_version, answers[0].role)
        return json_response(_completion(call, answers, created).model_dump(), headers=headers)

    return router


def read_text_completion(value: dict[str, Any]) -> TextCall:
    """Reads the body of a completion.

    Raises:
        InvalidArgumentError: names the first parameter that is wrong, unknown or not offered.
        NotFoundError: the model's name is not valid.
    """
    body = read_body(TextCompletionBody, value)
    sampling = SamplingParams(
        max_tokens=body.max_tokens or 0,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        stop=body.stop,
        top_k=body.top_k,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repetition_penalty=body.repetition_penalty,
        logprobs=body.logprobs is not None,
    )
    prompts = tuple(
        ChatCall(
            model=str(reference(body.model)).removeprefix("models/"),
            user=body.user,
            conversation=Conversation(messages=[ChatMessage(role="user", content=prompt)]),
            sampling=sampling,
            stream=body.stream,
            include_usage=body.stream_options is not None and body.stream_options.include_usage,
            apply_prompt_template=body.apply_prompt_template,
            store=body.store,
            answers=body.n,
        )
        for prompt in body.prompt
    )
    return TextCall(body, prompts)


def _check(call: TextCall) -> None:
    for number, prompt in enumerate(call.prompts):
        try:
            validate(prompt.whole()[0])
        except InvalidArgumentError as error:
            raise as_sent(error, lambda name, number=number: _sent_name(name, number)) from error  # type: ignore[misc]


def _sent_name(name: str, number: int) -> str:
    return f"prompt[{number}]" if name in ("text", "messages[0].content") else name


def logprobs_of(text: str, tokens: Sequence[TokenLogprob], at: int, top: bool) -> TextLogprobs:
    """Of a text that begins at a character of its answer; `top`: the tokens chosen were the most probable."""
    offsets, here, within = [], 0, False
    for token in tokens:
        # Parts of a character have no text of their own; the next whole token stands behind that character.
        partial = "\ufffd" in token.token
        found = -1 if partial else text.find(token.token, here) if within else here
        stands = found >= 0 and text.startswith(token.token, found)
        here = found if stands else here
        offsets.append(at + here)
        here += len(token.token) if stands else 0
        within = partial or (within and not stands)
    return TextLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[{token.token: token.logprob} for token in tokens] if top else None,
        text_offset=offsets,
    )


def _usage(call: TextCall, usages: Sequence[Usage]) -> completions.Usage:
    """Of all texts; each prompt counts once."""
    count = call.body.n
    each = [usage_of(*usages[at : at + count]) for at in range(0, len(usages), count)]
    names = completions.Usage.model_fields
    return completions.Usage(**{name: sum(getattr(usage, name) for usage in each) for name in names})


def _completion(call: TextCall, answers: Sequence[GenerateResponse], created: int) -> TextCompletion:
    wanted = call.body.logprobs
    choices = [
        TextChoice(
            index=index,
            text=call.echo(index) + answer.text,
            logprobs=logprobs_of(answer.text, answer.logprobs, 0, bool(wanted)) if wanted is not None else None,
            finish_reason=FINISH.get(answer.finish_reason, "stop"),
            answer=answer.answer,
            truncated=bool(answer.usage.truncated_tokens),
        )
        for index, answer in enumerate(answers)
    ]
    return TextCompletion(
        id=answers[0].answer,
        created=created,
        model=call.model,
        system_fingerprint=answers[0].model_version,
        choices=choices,
        truncated=any(choice.truncated for choice in choices),
        usage=_usage(call, [answer.usage for answer in answers]),
    )


class TextEvents:
    """Renders streamed texts; see `gateway.http.generation.Events`."""

    def __init__(self, call: TextCall, created: int) -> None:
        self._call = call
        self._head: dict[str, Any] = {"object": "text_completion", "created": created, "model": call.model}
        self._written = [0] * (call.body.n * len(call.prompts))

    def begin(self, index: int, first: StreamGenerateResponse) -> Iterable[bytes]:
        """The prompt, if it is to be repeated."""
        if index == 0:
            self._head = {"id": first.answer, **self._head, "system_fingerprint": first.model_version}
        if prompt := self._call.echo(index):
            yield self._event({"index": index, "text": prompt, "logprobs": None, "finish_reason": None})

    def piece(self, index: int, piece: StreamGenerateResponse) -> Iterable[bytes]:
        """A piece of a text, with its tokens if they were asked for."""
        if piece.text_delta or piece.logprobs:
            wanted, at = self._call.body.logprobs, self._written[index]
            self._written[index] += len(piece.text_delta)
            tokens = logprobs_of(piece.text_delta, piece.logprobs, at, bool(wanted)) if wanted is not None else None
            shown = tokens.model_dump() if tokens is not None else None
            yield self._event({"index": index, "text": piece.text_delta, "logprobs": shown, "finish_reason": None})

    def finish(self, index: int, last: StreamGenerateResponse) -> Iterable[bytes]:
        """Why the text ended, its name for feedback, and whether the end of its prompt was cut off."""
        reason, cut = FINISH.get(last.finish_reason, "stop"), bool(last.usage.truncated_tokens)
        choice = {"index": index, "text": "", "logprobs": None, "finish_reason": reason}
        yield self._event({**choice, "answer": last.answer, "truncated": cut})

    def end(self, usages: Sequence[Usage]) -> Iterable[bytes]:
        """The usage, if it was asked for."""
        if self._call.prompts[0].include_usage:
            yield event({**self._head, "choices": [], "usage": _usage(self._call, usages).model_dump()})
        yield b"data: [DONE]\n\n"

    def fail(self, error: TidemillError) -> Iterable[bytes]:
        """An error in the middle of a stream, as OpenAI's clients expect it."""
        yield event(openai_error(error))

    def _event(self, choice: dict[str, Any]) -> bytes:
        return event({**self._head, "choices": [choice]})
