"""Rewriters: augmenters whose variants a model writes. They compute only: what to ask, and what an answer is worth.

A variant takes one question or several, one after the other. What was answered is kept by the key of the question, so
that none is asked twice; `services.cleaning.app.rewriting` asks, and `services.cleaning.app.augment` uses the answers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Final, TypeVar

from pydantic import Field

from services.cleaning.domain.record import RecordKey
from services.cleaning.engine.augmenter import Translator, VariantMaker
from services.cleaning.engine.operator import Params
from services.kit.ids import content_digest

KEY_ENV: Final = r"^(TIDEMILL_AUGMENT_KEY_[A-Z0-9_]{1,64})?$"
"""Names of variables with keys: no other, so that a pipeline file cannot send another secret of the service."""
REFUSED, EMPTY, CUT_OFF = "refused", "empty", "cut_off"
"""Why an answer is not used: the text is refused, or the response says nothing; it is empty; its end is missing."""
MAX_PARENT_CHARS: Final = 16_000
"""Longer texts are not sent to a model."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A language model behind an OpenAI-compatible address: the URL before `/chat/completions`."""

    address: str
    model: str
    key_env: str = ""


@dataclass(frozen=True)
class Question:
    """What a model is asked for a variant of a record."""

    model: ServedModel | Translator
    prompt: str
    max_tokens: int
    temperature: float
    seed: int
    record: RecordKey
    number: int
    step: int = 0

    @cached_property
    def key(self) -> str:
        """Identifies it; of the model by address and name, not by its key."""
        model = self.model
        who = [model.digest] if isinstance(model, Translator) else [model.address, model.model]
        asked = [*who, self.prompt, self.max_tokens, self.temperature, self.seed]
        return content_digest([*asked, *self.record, self.number])

    @property
    def kind(self) -> str:
        """Who is asked, for errors."""
        return "the models that translate back" if self.step else "the models that write variants"

    @property
    def sampling_seed(self) -> int:
        """Seed of the model's choices, below 2**31."""
        return int(self.key[:8], 16) >> 1


@dataclass(frozen=True)
class Comparison:
    """An encoder is asked how close a variant is to its parent; the answer is the cosine of their embeddings."""

    model: ServedModel
    parent: str
    text: str
    record: RecordKey
    kind: ClassVar[str] = "the encoder that compares variants with their parents"

    @cached_property
    def key(self) -> str:
        """Identifies it, like a question."""
        return content_digest(["cosine", self.model.address, self.model.model, self.parent, self.text, *self.record])


@dataclass(frozen=True)
class Labelling:
    """A classifier is asked for the label of a variant."""

    model: ServedModel
    text: str
    record: RecordKey
    kind: ClassVar[str] = "the classifier that labels variants"

    @cached_property
    def key(self) -> str:
        """Identifies it, like a question."""
        return content_digest(["label", self.model.address, self.model.model, self.text, *self.record])


Query = Question | Comparison | Labelling
"""What a model is asked about a record."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote or found; or why it is not used, as a reason and in a sentence."""

    text: str
    dropped: str = ""
    detail: str = ""


@dataclass(slots=True)
class Answers:
    """The answers that are there, by the key of their question; notes what it was asked for."""

    known: Mapping[str, Answer] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    """Key and kind of the questions whose answers were used."""
    missing: dict[str, Query] = field(default_factory=dict)

    def of(self, question: Query) -> Answer | None:
        """The answer to a question; None if it has still to be asked."""
        answer = self.known.get(question.key)
        if answer is None:
            self.missing[question.key] = question
        else:
            self.used[question.key] = question.kind
        return answer


class RewriterParams(Params):
    """How a model is asked, and what may be sent to it.

    `temperature`: 0 for the most probable words. `max_tokens`: of an answer. `max_calls`: limit of the questions for
    one version of a data set. `key_env`: environment variable with the key of a served model. `private`: whether texts
    of the data class `private` may go to another machine.
    """

    key_env: str = Field("", pattern=KEY_ENV)
    temperature: float = Field(0.7, ge=0, le=2)
    private: bool = False
    max_tokens: int = Field(256, ge=1, le=4096)
    max_calls: int = Field(1000, ge=1, le=1_000_000)


W = TypeVar("W", bound=RewriterParams)


class Rewriter(VariantMaker[W]):
    """Has variants written by a model."""

    steps: ClassVar[int] = 1
    """Questions that a variant takes; each but the first is about the answer to the one before."""

    def question(self, step: int, text: str, record: RecordKey, number: int, seed: int) -> Question:
        """The question of a step, from 0, about a text."""
        model, prompt = self.ask(step, text)
        return Question(model, prompt, self.params.max_tokens, self.params.temperature, seed, record, number, step)

    @abstractmethod
    def ask(self, step: int, text: str) -> tuple[ServedModel | Translator, str]:
        """The model of a step, and what it is asked."""

    @property
    @abstractmethod
    def server(self) -> ServedModel | None:
        """The model that texts are sent to; None if they stay in this service."""
