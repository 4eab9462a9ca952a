"""A training spec: task, method, optimisation, evaluation, compression. Pure data, validated when it is created."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal, Protocol

from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.ids import content_digest

Precision = Literal["fp32", "bf16", "fp16", "auto"]
VariantName = Literal["fp32", "int8", "int4"]
VARIANTS: tuple[VariantName, ...] = ("fp32", "int8", "int4")
LATER: Mapping[str, bool] = {"later": True}
"""Metadata of an option that was added after runs were stored: `field(default=..., metadata=LATER)`.

At its default it does not enter the run's digest, so that an equal run of an earlier release is still found.
"""


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """Text from text: column `target_field` is the answer to `prompt_template` filled with a record's text."""

    prompt_template: str
    target_field: str
    max_input_tokens: int = 256
    max_target_tokens: int = 32
    kind: Literal["generation"] = "generation"

    @property
    def learnt(self) -> tuple[str, str]:
        """The column that is learnt, and the field of a spec that names it."""
        return self.target_field, "spec.generation.target_field"


@dataclass(frozen=True, slots=True)
class TextClassificationTask:
    """One label, in column `label_field`, from a text."""

    label_field: str
    max_input_tokens: int = 128
    kind: Literal["text_classification"] = "text_classification"

    @property
    def learnt(self) -> tuple[str, str]:
        """The column that is learnt, and the field of a spec that names it."""
        return self.label_field, "spec.text_classification.label_field"


class Method(Protocol):
    """Which weights are trained: a frozen dataclass of options, see `services.training.engine.methods`.

    A method that is not for every task lists the kinds of its tasks in a class variable `TASKS`. A method that reads a
    column of its own has a class variable `COLUMN`, the name of the option that contains the column's name.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init__(self, **options: Any) -> None: ...

    @property
    def kind(self) -> str:
        """Its name, which is also that of its field in a spec's `method`."""
        ...

    def adapt(self, model: Any) -> Any:
        """The torch module with the method's weights trainable and all others frozen.

        Raises:
            InvalidArgumentError: the method does not fit the model's layers; names the option.
        """
        ...

    def merge(self, model: Any) -> Any:
        """The plain torch module of an adapted and trained model."""
        ...


@dataclass(frozen=True, slots=True)
class Optimization:
    """AdamW with warm-up and cosine decay; exactly one of `max_steps` and `epochs` is positive."""

    max_steps: int = 0
    epochs: float = 0.0
    batch_size: int = 4
    gradient_accumulation: int = 1
    learning_rate: float = 1e-3
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    precision: Precision = "fp32"
    seed: int = 0
    checkpoint_every: int = 20

    def total_steps(self, examples: int) -> int:
        """Optimizer steps over `examples` training examples; at least one."""
        if self.max_steps:
            return self.max_steps
        return max(1, round(self.epochs * examples / (self.batch_size * self.gradient_accumulation)))


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model before it is loaded; `context_length` in tokens, None if it has no limit.

    `identity` is a digest that changes with the weights. `task` is the kind of task that such a model can learn; None
    if it can learn none.
    """

    name: str
    identity: str
    task: Literal["generation", "text_classification"] | None
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """What a run does to which data."""

    model_name: str
    base_model: str
    dataset_name: str
    dataset_uri: str
    dataset_digest: str
    task: GenerationTask | TextClassificationTask
    method: Method
    optimization: Optimization
    variants: tuple[VariantName, ...] = ("fp32",)
    max_eval_examples: int = 0

    def __post_init__(self) -> None:
        _refuse(self._violations())

    def _violations(self) -> list[FieldViolation]:
        found: list[FieldViolation] = []
        if bool(self.optimization.max_steps) == bool(self.optimization.epochs):
            found.append(FieldViolation("spec.optimization", "give exactly one of max_steps and epochs"))
        if not self.variants:
            found.append(FieldViolation("spec.compression.variants", "name at least one of fp32, int8, int4"))
        if isinstance(self.task, TextClassificationTask) and "int4" in self.variants:
            found.append(FieldViolation("spec.compression.variants", "int4 is for generation only"))
        able: tuple[str, ...] | None = getattr(self.method, "TASKS", None)
        if able is not None and self.task.kind not in able:
            found.append(FieldViolation(f"spec.{self.method.kind}", f"is for {', '.join(able)} only"))
        if isinstance(self.task, GenerationTask):
            named = re.findall(r"\{\w+\}", self.task.prompt_template)
            if "{text}" not in named:
                found.append(FieldViolation("spec.generation.prompt_template", "it must contain {text}"))
            if others := ", ".join(sorted({*named} - {"{text}"})):
                message = f"contains {others}, which callers cannot fill in; only {{text}} is replaced"
                found.append(FieldViolation("spec.generation.prompt_template", message))
        return found

    @property
    def learnt(self) -> list[tuple[str, str]]:
        """The learnt columns, each with the field of the spec that names it."""
        option: str | None = getattr(self.method, "COLUMN", None)
        own = [(str(getattr(self.method, option)), f"spec.{self.method.kind}.{option}")] if option else []
        return [self.task.learnt, *own]

    def check_base(self, base: BaseModel) -> None:
        """Checks the spec against its base model.

        Raises:
            InvalidArgumentError: the model cannot learn the task, or not from texts of that length.
        """
        task, limit, found = self.task, base.context_length, []
        if base.task != task.kind:
            able = {
                "generation": "writes text; text_classification needs an encoder, for example bge-small-zh-v1.5",
                "text_classification": "is an encoder; generation needs a causal model, for example "
                "smollm2-135m-instruct",
                None: "is neither a causal language model nor an encoder",
            }[base.task]
            found.append(FieldViolation("spec.base_model", f"{base.name} {able}"))
        elif isinstance(task, GenerationTask) and limit and task.max_input_tokens + task.max_target_tokens > limit:
            message = f"with max_target_tokens exceeds the {limit} tokens that {base.name} can read"
            found.append(FieldViolation("spec.generation.max_input_tokens", message))
        elif isinstance(task, TextClassificationTask) and limit and task.max_input_tokens > limit:
            message = f"exceeds the {limit} tokens that {base.name} can read"
            found.append(FieldViolation("spec.text_classification.max_input_tokens", message))
        _refuse(found)

    def digest(self, base_digest: str) -> str:
        """Identifies the run's outcome: a run with an equal digest need not be repeated.

        The data set enters by its content, not by its name.
        """
        value = _identity(self)
        for name in ("dataset_name", "dataset_uri"):
            value.pop(name)
        return content_digest({**value, "base_digest": base_digest})

    def to_json(self) -> dict[str, Any]:
        """JSON form, see `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], make_method: Callable[[str, Mapping[str, Any]], Method]
    ) -> TrainingSpec:
        """The spec from its JSON form; `make_method` creates a method from its name and options."""
        task, method = dict(value["task"]), dict(value["method"])
        return cls(
            **{
                # Specs stored by 0.1 have it; it was never used.
                **{name: item for name, item in value.items() if name != "metadata"},
                "task": _TASKS[task["kind"]](**task),
                "method": make_method(method.pop("kind"), method),
                "optimization": Optimization(**value["optimization"]),
                "variants": tuple(value["variants"]),
            }
        )


_TASKS: Mapping[str, type[GenerationTask] | type[TextClassificationTask]] = {
    "generation": GenerationTask,
    "text_classification": TextClassificationTask,
}


def _identity(value: Any) -> Any:
    """The JSON form without options that were added later and have their default value."""
    if not is_dataclass(value):
        return value
    items = [(item, getattr(value, item.name)) for item in fields(value)]
    return {
        item.name: _identity(found)
        for item, found in items
        if not (item.metadata.get("later") and found == item.default)
    }


def _refuse(violations: list[FieldViolation]) -> None:
    if violations:
        text = "; ".join(f"{v.field}: {v.description}" for v in violations)
        raise InvalidArgumentError(text, reason="INVALID_RECIPE", violations=violations)
