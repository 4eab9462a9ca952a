"""What models are asked, and what they answer."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from services.kit.labels import assigned, labels_answer
from services.kit.spans import Span


class Task(StrEnum):
    """What a model does."""

    GENERATION = "generation"
    TEXT_CLASSIFICATION = "text_classification"
    MULTI_LABEL_CLASSIFICATION = "multi_label_classification"
    TOKEN_CLASSIFICATION = "token_classification"  # noqa: S105 - a task
    TEXT_EMBEDDING = "text_embedding"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; zero, None and empty mean the defaults, such as the model's limit, greedy, random."""

    max_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 0.0
    json_schema: str = ""
    """The answer is valid against it."""
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function; `arguments` is a JSON object."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    """Of an assistant: functions that it called."""
    call_id: str = ""
    """Of a tool: the call that it answers."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A record's text, or a conversation; one of them."""

    text: str | None = None
    conversation: tuple[Message, ...] = ()
    tools: str = ""
    """JSON list of the functions that may be called, as OpenAI's API has them; empty without."""
    tool_choice: str = ""
    """`auto`, `required`, or the name of the function that is to be called."""


@dataclass(frozen=True, slots=True)
class CallerPriority:
    """Whose request it is, and whether it is in the background: callers take turns, and the background comes last."""

    caller: str = ""
    background: bool = False


@dataclass(frozen=True, slots=True)
class ReadText:
    """A text that a model read. `truncated_tokens` at its end were left out, for the model reads no more."""

    prompt_tokens: int = 0
    truncated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scored(ReadText):
    """A text with the scores of all labels."""

    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Recognized(ReadText):
    """A text with its named parts, in their order."""

    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Embedded(ReadText):
    """A text with its embedding, 32-bit floats of length 1 together."""

    values: array[float] = field(default_factory=lambda: array("f"))

    def shortened(self, dimensions: int) -> Embedded:
        """The first `dimensions` of it, with length 1 again."""
        kept = self.values[:dimensions]
        length = math.sqrt(sum(value * value for value in kept)) or 1.0
        return replace(self, values=array("f", (value / length for value in kept)))


@dataclass(frozen=True, slots=True)
class Classified:
    """A classifier's result for a text; the scores of all labels add up to 1, unless a text has several."""

    label: str
    score: float
    scores: dict[str, float] = field(default_factory=dict)
    text: ReadText = ReadText()
    spans: tuple[Span, ...] = ()
    """What a model for token classification found, in the order of the text; such a model gives no label."""
    labels: tuple[str, ...] | None = None
    """What a model for multi-label classification assigned, the highest score first; None of another model."""

    @property
    def noted(self) -> str:
        """What is recorded as the label of the answer: the label, or the labels, equal for equal sets."""
        return self.label if self.labels is None else labels_answer(self.labels)


def classified(labels: Sequence[str], text: Scored) -> Classified:
    """Names the scores of a text; the label is the first of the highest."""
    named = dict(zip(labels, text.scores, strict=True))
    label = max(named, key=lambda name: named[name])
    return Classified(label, named[label], named, text)


def multi_labelled(labels: Sequence[str], text: Scored) -> Classified:
    """Names the scores of a text, each of which decides about its own label."""
    named = dict(zip(labels, text.scores, strict=True))
    return Classified("", 0.0, named, text, labels=tuple(assigned(labels, text.scores)))


class FinishReason(StrEnum):
    """Why an answer ended."""

    NONE = ""
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer and the natural logarithm of its probability."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer; the last one has a finish reason. Token counts are of the whole answer so far."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[Token, ...] = ()
    """Those since the piece before, if log probabilities were asked for."""
    truncated_tokens: int = 0
    """Tokens at the end of the prompt's text that were left out, for the model reads no more."""
