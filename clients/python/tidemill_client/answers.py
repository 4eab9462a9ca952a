"""What goes to the mesh and comes back, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; what is None is the model's own."""

    max_tokens: int | None = None
    temperature: float | None = None
    """0 takes the most probable token."""
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    json_schema: str | Mapping[str, Any] | None = None
    """The answer is JSON that is valid against this schema."""
    logprobs: bool | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability."""

    token: str
    logprob: float


Signal = Literal["", "accepted", "edited", "retried"]
"""What a person did with an answer, as the product saw it; empty when it is not known."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a person, or a product for them, says of an answer."""

    answer: str
    """Its id, as the answer or prediction has it."""
    rating: float = 0.0
    """From -1 (bad) to 1 (good)."""
    label: str = ""
    """The right label; of a classifier."""
    correction: str = ""
    """What the answer should have been; of a model that writes."""
    signal: Signal = ""
    comment: str = ""
    episode: str = ""
    """What several answers of one session have in common."""
    author: str = ""
    """Who judged, in your own terms."""


@dataclass(frozen=True, slots=True)
class Span:
    """A named part of a text: its first character and the one after its last, counted in code points from zero."""

    start: int
    end: int
    label: str
    score: float


class ReadText:
    """A text that a model read, of which an end that was too long may be missing."""

    __slots__ = ()
    truncated_tokens: int

    @property
    def truncated(self) -> bool:
        """Whether the end of the text was cut off, for the model reads no more."""
        return self.truncated_tokens > 0


@dataclass(frozen=True, slots=True)
class Prediction(ReadText):
    """One classified text, or one whose named parts were found."""

    id: str
    """`answers/{answer}`, for feedback."""
    label: str
    score: float
    """Probability of the label."""
    scores: Mapping[str, float]
    """Probability of every label."""
    prompt_tokens: int = 0
    truncated_tokens: int = 0
    """Tokens at the text's end that were cut off, for the model reads no more."""
    spans: Sequence[Span] = ()
    """Of a model that finds named parts; it gives no label."""
    model_version: str = ""
    """The version that answered this text: with a cascade, of this model or of the larger one."""
    labels: Sequence[str] = ()
    """What a model that assigns several labels assigned, the highest score first; it gives no `label`."""


class Predictions(list[Prediction]):
    """One prediction for each text, in order, and the version that made them."""

    model_version: str
    """`models/{model}/versions/{number}`."""


@dataclass(frozen=True, slots=True)
class Embedding(ReadText):
    """One embedded text."""

    values: Sequence[float]
    """Of length 1, so that the inner product of two of them is their cosine."""
    prompt_tokens: int
    truncated_tokens: int
    """Tokens at the text's end that were cut off, for the model reads no more."""


class Embeddings(list[Embedding]):
    """One embedding for each text, in order, and the version that made them: only its own can be compared."""

    model_version: str
    """`models/{model}/versions/{number}`."""


@dataclass(frozen=True, slots=True)
class Answer(ReadText):
    """A whole answer."""

    id: str
    """`answers/{answer}`, for feedback."""
    text: str
    model_version: str
    """`models/{model}/versions/{number}`."""
    finish_reason: str
    """`stop`, or `length` where the limit of tokens cut it."""
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    """Its tokens, if `Sampling.logprobs` was set."""
    truncated_tokens: int = 0
    """Tokens at the prompt's end that were cut off, for the model reads no more."""


@dataclass(frozen=True, slots=True)
class Piece(ReadText):
    """A part of an answer; the last one has a finish reason and counts of tokens."""

    id: str
    text: str
    model_version: str
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    truncated_tokens: int = 0
    """Tokens at the prompt's end that were cut off, for the model reads no more; in the last piece."""
