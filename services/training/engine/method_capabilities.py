"""What a fine-tuning method may offer beyond `Method`; a method of another package may, too.

A worker and a plan ask for the capability, never for a method's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from services.kit.prompts import Prompts
from services.training.domain.tasks import GenerationTask
from services.training.engine.model_shape import Shape
from services.training.engine.tasks import Objective

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a method adds to a plan of memory.

    `trained` weights; `texts` that are read for each example; the smallest batch; whether no weight of the blocks is
    trained; whether each pass copies the table of embeddings, which is then separate from the output layer.
    """

    trained: int
    texts: int = 1
    min_batch: int = 1
    frozen_blocks: bool = False
    copied_embeddings: bool = False


@runtime_checkable
class Plannable(Protocol):
    """A method whose memory can be planned. Without it a run is admitted without a plan."""

    def footprint(self, shape: Shape) -> Footprint:
        """For a base model of this shape, without a classifier's head."""
        ...


class JudgedObjective(Objective, Protocol):
    """An objective that can say what was learnt of held-out judgements of people."""

    def accuracy(self, model: Any, device: torch.device) -> list[float]:
        """For each example 1.0 if training moved the model in the direction that people preferred, else 0.0."""
        ...


@runtime_checkable
class LearnsFromPeople(Protocol):
    """A method with an objective of its own, on judgements of people in the column that option `COLUMN` names."""

    COLUMN: ClassVar[str]

    def objective(
        self, task: GenerationTask, prompts: Prompts, tokenizer: Any, rows: Sequence[Mapping[str, str]]
    ) -> JudgedObjective:
        """The objective over the rows that have a judgement.

        Raises:
            FailedPreconditionError: the rows lack the values that the method learns from.
        """
        ...


@runtime_checkable
class AddsTokens(Protocol):
    """A method that adds tokens to the vocabulary."""

    def write_tokenizer(self, base: Path, target: Path) -> None:
        """Writes the base model's tokenizer with the added tokens.

        Raises:
            InvalidArgumentError: the model cannot get them.
        """
        ...

    def add_embeddings(self, model: Any, tokenizer: Any, task: GenerationTask) -> None:
        """Adds the rows of the tokens to a causal language model, in place."""
        ...


def pad_token(tokenizer: Any) -> int:
    """Id of the token that fills shorter rows."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
