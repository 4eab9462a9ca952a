"""The tasks that a model can be trained for: one frozen dataclass each, and the table of them.

A task's fields are those of its message, and its `kind` is the name of its field in `TrainingSpec.task` of the proto.
The worker of a task is the module of that name in `services.training.worker`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from services.kit.errors import FieldViolation
from services.training.domain.strategies import Strategy

VariantName = Literal["fp32", "int8", "int4"]
VARIANTS: tuple[VariantName, ...] = ("fp32", "int8", "int4")

Architecture = Literal["causal", "encoder"]


class Task(Protocol):
    """What a model is trained to do.

    A task that reads several texts of each example says how many in a property `texts`. One that learns from further
    columns lists them in a property `further`, each with the field of a spec that names it. One whose loss compares the
    examples of a batch with each other has the smallest batch in a class variable `MIN_BATCH`. One without students has
    `STUDENTS` false; one that does not work with all strategies lists those that it works with in `STRATEGIES`.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    ARCHITECTURE: ClassVar[Architecture]
    """The kind of base model that can learn it."""
    VARIANTS: ClassVar[tuple[VariantName, ...]]
    """The builds that it can have."""

    @property
    def kind(self) -> str:
        """Its name, which is also that of its field in a spec's `task`."""
        ...

    @property
    def max_input_tokens(self) -> int:
        """Longest input; longer texts are cut."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest input and answer together, which the base model must be able to read."""
        ...

    @property
    def learnt(self) -> tuple[str, str]:
        """The column that is learnt, and the field of a spec that names it."""
        ...

    def violations(self) -> list[FieldViolation]:
        """What is wrong with its fields."""
        ...


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """Text from text: column `target_field` is the answer to `prompt_template` filled with a record's text."""

    ARCHITECTURE: ClassVar[Architecture] = "causal"
    VARIANTS: ClassVar[tuple[VariantName, ...]] = VARIANTS
    STRATEGIES: ClassVar[tuple[Strategy, ...]] = ("single", "ddp", "fsdp", "tp")

    prompt_template: str
    target_field: str
    max_input_tokens: int = 256
    max_target_tokens: int = 32
    kind: Literal["generation"] = "generation"

    @property
    def max_tokens(self) -> int:
        """See `Task`."""
        return self.max_input_tokens + self.max_target_tokens

    @property
    def learnt(self) -> tuple[str, str]:
        """See `Task`."""
        return self.target_field, "spec.generation.target_field"

    def violations(self) -> list[FieldViolation]:
        """See `Task`."""
        field, found = "spec.generation.prompt_template", []
        named = re.findall(r"\{\w+\}", self.prompt_template)
        if "{text}" not in named:
            found.append(FieldViolation(field, "it must contain {text}"))
        if others := ", ".join(sorted({*named} - {"{text}"})):
            message = f"contains {others}, which callers cannot fill in; only {{text}} is replaced"
            found.append(FieldViolation(field, message))
        return found


@dataclass(frozen=True, slots=True)
class TextClassificationTask:
    """One label, in column `label_field`, from a text."""

    ARCHITECTURE: ClassVar[Architecture] = "encoder"
    VARIANTS: ClassVar[tuple[VariantName, ...]] = ("fp32", "int8")

    label_field: str
    max_input_tokens: int = 128
    kind: Literal["text_classification"] = "text_classification"

    @property
    def max_tokens(self) -> int:
        """See `Task`."""
        return self.max_input_tokens

    @property
    def learnt(self) -> tuple[str, str]:
        """See `Task`."""
        return self.label_field, "spec.text_classification.label_field"

    def violations(self) -> list[FieldViolation]:
        """See `Task`."""
        return []


@dataclass(frozen=True, slots=True)
class TokenClassificationTask:
    """Named parts of a text, in column `spans_field` as JSON."""

    ARCHITECTURE: ClassVar[Architecture] = "encoder"
    VARIANTS: ClassVar[tuple[VariantName, ...]] = ("fp32", "int8")

    spans_field: str
    max_input_tokens: int = 128
    kind: Literal["token_classification"] = "token_classification"

    @property
    def max_tokens(self) -> int:
        """See `Task`."""
        return self.max_input_tokens

    @property
    def learnt(self) -> tuple[str, str]:
        """See `Task`."""
        return self.spans_field, "spec.token_classification.spans_field"

    def violations(self) -> list[FieldViolation]:
        """See `Task`."""
        return []


@dataclass(frozen=True, slots=True)
class TextEmbeddingTask:
    """Vectors of texts: a text lies close to its positive, column `positive_field`, and apart from other positives.

    `negative_field` is a column with hard negatives, empty for none. Cosines are divided by `temperature`; 0.05 if it
    is zero, as Sentence-Transformers has it. The first `dimensions` numbers of a vector are to be an embedding, too.
    """

    ARCHITECTURE: ClassVar[Architecture] = "encoder"
    VARIANTS: ClassVar[tuple[VariantName, ...]] = ("fp32", "int8")
    MIN_BATCH: ClassVar[int] = 2
    STUDENTS: ClassVar[bool] = False
    STRATEGIES: ClassVar[tuple[Strategy, ...]] = ("single",)

    positive_field: str
    max_input_tokens: int = 128
    negative_field: str = ""
    temperature: float = 0.05
    dimensions: tuple[int, ...] = ()
    kind: Literal["text_embedding"] = "text_embedding"

    def __post_init__(self) -> None:
        # Lists come from messages and from JSON; in a fixed order, so that equal specs are equal runs.
        object.__setattr__(self, "dimensions", tuple(sorted(self.dimensions)))
        object.__setattr__(self, "temperature", self.temperature or 0.05)

    @property
    def max_tokens(self) -> int:
        """See `Task`."""
        return self.max_input_tokens

    @property
    def texts(self) -> int:
        """See `Task`."""
        return 3 if self.negative_field else 2

    @property
    def learnt(self) -> tuple[str, str]:
        """See `Task`."""
        return self.positive_field, "spec.text_embedding.positive_field"

    @property
    def further(self) -> list[tuple[str, str]]:
        """See `Task`."""
        return [(self.negative_field, "spec.text_embedding.negative_field")] if self.negative_field else []

    def violations(self) -> list[FieldViolation]:
        """See `Task`."""
        place, found = "spec.text_embedding", []
        for name, column in (("positive_field", self.positive_field), ("negative_field", self.negative_field)):
            if column == "text":
                wrong = "name another column than text, which is what is embedded"
                found.append(FieldViolation(f"{place}.{name}", wrong))
        if self.positive_field == self.negative_field:
            found.append(FieldViolation(f"{place}.negative_field", "name another column than positive_field"))
        return found


@dataclass(frozen=True, slots=True)
class MultiLabelClassificationTask:
    """Any number of labels, in column `labels_field` as JSON or separated by `separator`, from a text.

    `calibration_share` of the training records choose the thresholds of the labels, and are not learnt.
    """

    ARCHITECTURE: ClassVar[Architecture] = "encoder"
    VARIANTS: ClassVar[tuple[VariantName, ...]] = ("fp32", "int8")

    labels_field: str
    max_input_tokens: int = 128
    separator: str = ""
    calibration_share: float = 0.1
    kind: Literal["multi_label_classification"] = "multi_label_classification"

    def __post_init__(self) -> None:
        # Zero in a message is the default.
        object.__setattr__(self, "calibration_share", self.calibration_share or 0.1)

    @property
    def max_tokens(self) -> int:
        """See `Task`."""
        return self.max_input_tokens

    @property
    def learnt(self) -> tuple[str, str]:
        """See `Task`."""
        return self.labels_field, "spec.multi_label_classification.labels_field"

    def violations(self) -> list[FieldViolation]:
        """See `Task`."""
        place, found = "spec.multi_label_classification", []
        if self.separator and not self.separator.strip(" "):
            wrong = "is blank: labels may consist of several words; name another one"
            found.append(FieldViolation(f"{place}.separator", wrong))
        if not 0 < self.calibration_share <= 0.5:
            found.append(FieldViolation(f"{place}.calibration_share", "must be above 0 and at most 0.5"))
        return found


@dataclass(frozen=True, slots=True)
class OrdinalClassificationTask:
    """One of `labels`, which go from the lowest to the highest, in column `label_field`, from a text."""

    ARCHITECTURE: ClassVar[Architecture] = "encoder"
    VARIANTS: ClassVar[tuple[VariantName, ...]] = ("fp32", "int8")

    label_field: str
    max_input_tokens: int = 128
    labels: tuple[str, ...] = ()
    kind: Literal["ordinal_classification"] = "ordinal_classification"

    def __post_init__(self) -> None:
        # A message and stored JSON have lists.
        object.__setattr__(self, "labels", tuple(self.labels))

    @property
    def max_tokens(self) -> int:
        """See `Task`."""
        return self.max_input_tokens

    @property
    def learnt(self) -> tuple[str, str]:
        """See `Task`."""
        return self.label_field, "spec.ordinal_classification.label_field"

    def violations(self) -> list[FieldViolation]:
        """See `Task`."""
        place, found = "spec.ordinal_classification.labels", []
        if len(self.labels) < 2:
            found.append(FieldViolation(place, "name two labels or more, from the lowest to the highest"))
        if twice := sorted({label for label in self.labels if self.labels.count(label) > 1}):
            found.append(FieldViolation(place, f"names {', '.join(twice)} twice"))
        return found


TASKS: Mapping[str, type[Task]] = {
    "generation": GenerationTask,
    "text_classification": TextClassificationTask,
    "token_classification": TokenClassificationTask,
    "text_embedding": TextEmbeddingTask,
    "multi_label_classification": MultiLabelClassificationTask,
    "ordinal_classification": OrdinalClassificationTask,
}
