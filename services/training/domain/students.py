"""Students: smaller models made from a tuned encoder, and how they learn from it. Pure data; no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from services.kit.errors import FieldViolation

if TYPE_CHECKING:
    from services.training.domain.training_spec import BaseModel

FIELD = "spec.compression.students"
_HOW = "spec.compression.distillation"
FAMILIES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
"""Encoders whose blocks are laid out as BERT's, by `model_type` of their configuration."""


@dataclass(frozen=True, slots=True)
class Student:
    """What stays of the tuned model; all where zero. `feed_forward` is a share, the others are numbers.

    `vocabulary` is the largest number of tokens that keep their embedding, see `services.training.engine.students`.
    """

    layers: int = 0
    feed_forward: float = 0.0
    heads: int = 0
    vocabulary: int = 0
    precision: Literal["fp32", "int8"] = "int8"

    @property
    def name(self) -> str:
        """Name of its build, for example `int8-l2-f50`."""
        return f"{self.precision}-{self.shape}"

    @property
    def shape(self) -> str:
        """What it is pruned to, for example `l2-f50`: students of one shape differ in their precision only."""
        share = max(1, round(self.feed_forward * 100)) if 0 < self.feed_forward < 1 else 0
        parts = (("l", self.layers), ("f", share), ("h", self.heads), ("v", self.vocabulary))
        return "-".join(f"{letter}{number}" for letter, number in parts if number)

    def neurons(self, of: int) -> int:
        """How many of a feed-forward layer's neurons stay."""
        return max(1, round(of * self.feed_forward)) if self.feed_forward else of

    def misfits(self, base: BaseModel) -> list[tuple[str, str]]:
        """Its fields that ask for more than a base model has, each with what is wrong."""
        limits = (
            ("layers", self.layers, base.layers),
            ("heads", self.heads, base.heads),
            ("vocabulary", self.vocabulary, base.vocabulary),
        )
        return [
            (name, f"{wanted} is more than the {there} of {base.name}")
            for name, wanted, there in limits
            if wanted > there
        ]


@dataclass(frozen=True, slots=True)
class Distillation:
    """How students learn; at most one of `max_steps` and `epochs` is positive, and three epochs if neither is."""

    max_steps: int = 0
    epochs: float = 0.0
    learning_rate: float = 5e-4
    temperature: float = 2.0

    @property
    def length(self) -> dict[str, float]:
        """The fields of `Optimization` that say for how long."""
        epochs = 0.0 if self.max_steps else self.epochs or 3.0
        return {"max_steps": self.max_steps, "epochs": epochs}


def violations(students: Sequence[Student], distillation: Distillation, able: bool, task: str) -> list[FieldViolation]:
    """What is wrong with the students of a task, `able` to have any, and how they learn, whatever its base model."""
    if students and not able:
        return [FieldViolation(FIELD, f"{task} has none; they are for classification")]
    found = []
    if distillation.max_steps and distillation.epochs:
        found.append(FieldViolation(_HOW, "give at most one of max_steps and epochs"))
    if distillation != Distillation() and not students:
        found.append(FieldViolation(_HOW, "there is no student that learns so; name one in compression.students"))
    found += [
        FieldViolation(f"{FIELD}[{at}]", "name what is made smaller: layers, feed_forward, heads or vocabulary")
        for at, student in enumerate(students)
        if not student.shape
    ]
    names = [student.name for student in students]
    found += [
        FieldViolation(f"{FIELD}[{at}]", f"its build would have the name {name}, as that of students[{first}]")
        for at, name in enumerate(names)
        if (first := names.index(name)) != at
    ]
    return found


def misfits(students: Sequence[Student], base: BaseModel) -> list[FieldViolation]:
    """What a base model cannot give."""
    if students and base.family not in FAMILIES:
        kind = base.family or "an encoder of unknown kind"
        return [FieldViolation(FIELD, f"{base.name} is {kind}; students are made of {', '.join(FAMILIES)}")]
    return [
        FieldViolation(f"{FIELD}[{at}].{name}", wrong)
        for at, student in enumerate(students)
        for name, wrong in student.misfits(base)
    ]
