"""A training spec: task, method, optimisation, evaluation, compression. Pure data, validated when it is created."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, Protocol

from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.ids import content_digest
from services.training.domain.strategies import OVER_EXAMPLES, SPLIT_FAMILIES, WHOLE_LAYERS, Strategy
from services.training.domain.students import Distillation, Student, misfits, violations
from services.training.domain.tasks import TASKS, Architecture, Task, VariantName
from services.training.domain.trials import Trial

Precision = Literal["fp32", "bf16", "fp16", "auto"]
LENGTH = "length"
"""Names slices by the length of a text, which is not a column."""
MIN_SLICE_EXAMPLES = 20
LATER: Mapping[str, bool] = {"later": True}
"""Metadata of an option that was added after runs were stored: `field(default=..., metadata=LATER)`.

At its default it does not enter the run's digest, so that an equal run of an earlier release is still found.
"""


class Method(Protocol):
    """Which weights are trained: a frozen dataclass of options, see `services.training.engine.methods`.

    A method that is not for every task lists the kinds of its tasks in a class variable `TASKS`. A method that reads a
    column of its own has a class variable `COLUMN`, the name of the option that contains the column's name. One that
    works with other strategies than `single` lists all of its strategies in `STRATEGIES`.
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

    `identity` is a digest that changes with the weights. `architecture` is None if it can learn no task. `family` is
    `model_type` of its configuration; the sizes are zero where that does not say them.
    """

    name: str
    identity: str
    architecture: Architecture | None
    context_length: int | None = None
    family: str = ""
    layers: int = 0
    heads: int = 0
    vocabulary: int = 0
    width: int = 0
    key_heads: int = 0
    """Heads of keys and values, of which some families have fewer."""
    feed_forward: int = 0


_IS: Mapping[Architecture | None, str] = {
    "causal": "is a causal language model",
    "encoder": "is an encoder",
    None: "is neither a causal language model nor an encoder",
}
_NEEDS: Mapping[Architecture, str] = {
    "causal": "a causal model, for example smollm2-135m-instruct",
    "encoder": "an encoder, for example bge-small-zh-v1.5",
}


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """What a run does to which data; `trial` is set if it is one."""

    model_name: str
    base_model: str
    dataset_name: str
    dataset_uri: str
    dataset_digest: str
    task: Task
    method: Method
    optimization: Optimization
    variants: tuple[VariantName, ...] = ("fp32",)
    max_eval_examples: int = 0
    students: tuple[Student, ...] = field(default=(), metadata=LATER)
    distillation: Distillation = field(default=Distillation(), metadata=LATER)
    strategy: Strategy = field(default="single", metadata=LATER)
    processes: int = field(default=1, metadata=LATER)
    slices: tuple[str, ...] = field(default=(), metadata=LATER)
    """What the hold-out is sliced by, see `services.training.engine.slices`; the usual, where it is there, if empty."""
    min_slice_examples: int = field(default=MIN_SLICE_EXAMPLES, metadata=LATER)
    trial: Trial | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        _refuse(self._violations())

    def _violations(self) -> list[FieldViolation]:
        found: list[FieldViolation] = []
        if bool(self.optimization.max_steps) == bool(self.optimization.epochs):
            found.append(FieldViolation("spec.optimization", "give exactly one of max_steps and epochs"))
        if not self.variants:
            found.append(FieldViolation("spec.compression.variants", "name at least one of fp32, int8, int4"))
        if unable := [name for name in self.variants if name not in self.task.VARIANTS]:
            message = (
                f"{self.task.kind} has no {' or '.join(unable)} build; choose from {', '.join(self.task.VARIANTS)}"
            )
            found.append(FieldViolation("spec.compression.variants", message))
        able: tuple[str, ...] | None = getattr(self.method, "TASKS", None)
        if able is not None and self.task.kind not in able:
            found.append(FieldViolation(f"spec.{self.method.kind}", f"is for {', '.join(able)} only"))
        found += self._unshareable()
        able_students = self.task.ARCHITECTURE == "encoder" and getattr(self.task, "STUDENTS", True)
        found += violations(self.students, self.distillation, able_students, self.task.kind)
        least: int = getattr(self.task, "MIN_BATCH", 1)
        if self.optimization.batch_size < least:
            wrong = f"{self.task.kind} needs {least} or more, for it compares the examples of a batch with each other"
            found.append(FieldViolation("spec.optimization.batch_size", wrong))
        found += self.task.violations()
        return found

    def _unshareable(self) -> list[FieldViolation]:
        """Why the processes cannot share the work."""
        strategy, processes = self.strategy, self.processes
        if strategy == "single":
            wrong = "single has one process; name strategy ddp, fsdp or tp for more"
            return [FieldViolation("spec.processes", wrong)] if processes != 1 else []
        found: list[FieldViolation] = []
        if processes < 2:
            wrong = f"{strategy} needs 2 or more processes; for one, leave strategy out"
            found.append(FieldViolation("spec.processes", wrong))
        if strategy in OVER_EXAMPLES and self.optimization.batch_size < processes:
            wrong = (
                f"each of the {processes} processes needs an example of a batch; name {processes} or more, or fewer "
                "processes"
            )
            found.append(FieldViolation("spec.optimization.batch_size", wrong))
        able: tuple[Strategy, ...] = getattr(self.method, "STRATEGIES", ("single",))
        if strategy not in able:
            wrong = f"{self.method.kind} does not work with {strategy}; choose from {', '.join(able)}"
            found.append(FieldViolation("spec.strategy", wrong))
        shared: tuple[Strategy, ...] = getattr(self.task, "STRATEGIES", OVER_EXAMPLES)
        if strategy not in shared:
            wrong = f"{self.task.kind} does not work with {strategy}; choose from {', '.join(shared)}"
            found.append(FieldViolation("spec.strategy", wrong))
        if strategy not in WHOLE_LAYERS and self.optimization.precision == "fp16":
            wrong = f"fp16 does not work with {strategy}; choose bf16 or fp32, or strategy ddp"
            found.append(FieldViolation("spec.optimization.precision", wrong))
        return found

    @property
    def learnt(self) -> list[tuple[str, str]]:
        """The learnt columns, each with the field of the spec that names it."""
        option: str | None = getattr(self.method, "COLUMN", None)
        own = [(str(getattr(self.method, option)), f"spec.{self.method.kind}.{option}")] if option else []
        return [self.task.learnt, *getattr(self.task, "further", ()), *own]

    @property
    def sliced(self) -> list[tuple[str, str]]:
        """The columns that the hold-out is to be sliced by, each with the field of the spec that names it."""
        return [(name, "spec.evaluation.slices") for name in self.slices if name != LENGTH]

    def check_base(self, base: BaseModel) -> None:
        """Checks the spec against its base model.

        Raises:
            InvalidArgumentError: the model cannot learn the task, or not from texts of that length, or has less than a
                student is to keep, or its layers cannot be split among the processes.
        """
        task, found = self.task, []
        if base.architecture != task.ARCHITECTURE:
            message = f"{base.name} {_IS[base.architecture]}; {task.kind} needs {_NEEDS[task.ARCHITECTURE]}"
            found.append(FieldViolation("spec.base_model", message))
        elif base.context_length and task.max_tokens > base.context_length:
            answer = "" if task.max_tokens == task.max_input_tokens else " with the answer"
            message = (
                f"{task.max_tokens} tokens{answer} exceed the {base.context_length} tokens that {base.name} can read"
            )
            found.append(FieldViolation(f"spec.{task.kind}.max_input_tokens", message))
        else:
            found += misfits(self.students, base)
            found += self._unsplittable(base)
            wide = [each for each in getattr(task, "dimensions", ()) if 0 < base.width <= each]
            if wide:
                message = f"{wide[0]} is not below {base.width}, the width of {base.name}"
                found.append(FieldViolation(f"spec.{task.kind}.dimensions", message))
        _refuse(found)

    def _unsplittable(self, base: BaseModel) -> list[FieldViolation]:
        """Why tensor parallel processes cannot split the layers of the base model."""
        if self.strategy != "tp":
            return []
        if base.family not in SPLIT_FAMILIES:
            families = ", ".join(sorted(SPLIT_FAMILIES))
            wrong = (
                f"tp cannot split {base.name}, a model of {base.family or 'an unknown family'}; it splits {families}"
            )
            return [FieldViolation("spec.strategy", wrong)]
        parts = (
            (base.heads, "attention heads"),
            (base.key_heads, "heads of keys and values"),
            (base.feed_forward, "units of its feed-forward layers"),
        )
        for count, what in parts:
            if count % self.processes:
                wrong = f"{base.name} has {count} {what}, which {self.processes} processes cannot share equally"
                return [FieldViolation("spec.processes", wrong)]
        return []

    def digest(self, base_digest: str) -> str:
        """Identifies the run's outcome: a run with an equal digest need not be repeated.

        The data set enters by its content, not by its name; a trial by what it measures, not by its search.
        """
        value = _identity(self)
        for name in ("dataset_name", "dataset_uri"):
            value.pop(name)
        if self.trial is not None:
            value["trial"].pop("study")
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
                "task": TASKS[task["kind"]](**task),
                "method": make_method(method.pop("kind"), method),
                "optimization": Optimization(**value["optimization"]),
                "variants": tuple(value["variants"]),
                # Specs of earlier releases have none.
                "students": tuple(Student(**item) for item in value.get("students", ())),
                "distillation": Distillation(**value.get("distillation", {})),
                "slices": tuple(value.get("slices", ())),
                "trial": Trial(**value["trial"]) if value.get("trial") else None,
            }
        )


def _identity(value: Any) -> Any:
    """The JSON form without options that were added later and have their default value."""
    if isinstance(value, tuple):
        return [_identity(item) for item in value]
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
