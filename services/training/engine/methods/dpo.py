"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290): adapters learn which answer was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from services.kit.prompts import Prompts
from services.training.domain.strategies import Strategy
from services.training.domain.tasks import GenerationTask
from services.training.engine.low_rank import LowRank
from services.training.engine.method_capabilities import Footprint, pad_token
from services.training.engine.model_shape import Shape
from services.training.engine.preferences import PreferenceObjective, Preferred, with_value
from services.training.engine.prompts import training_pairs


@dataclass(frozen=True, slots=True)
class Dpo(LowRank):
    """Learns from pairs: the task's target is the chosen answer, column `rejected_field` has the rejected one."""

    rejected_field: str = "rejected"
    beta: float = 0.1
    label_smoothing: float = 0.0
    kind: Literal["dpo"] = "dpo"

    TASKS: ClassVar[tuple[str, ...]] = ("generation",)
    STRATEGIES: ClassVar[tuple[Strategy, ...]] = ("single", "ddp")
    COLUMN: ClassVar[str] = "rejected_field"

    def footprint(self, shape: Shape) -> Footprint:
        """See `Plannable.footprint`; the chosen and the rejected answer of each example are read."""
        return replace(LowRank.footprint(self, shape), texts=2)

    def objective(
        self, task: GenerationTask, prompts: Prompts, tokenizer: Any, rows: Sequence[Mapping[str, str]]
    ) -> PreferenceObjective:
        """See `LearnsFromPeople.objective`."""
        found = with_value(rows, self.rejected_field, "spec.dpo.rejected_field")
        chosen = training_pairs(prompts, tokenizer, task, found)
        other = [{**row, task.target_field: row[self.rejected_field]} for row in found]
        rejected = training_pairs(prompts, tokenizer, task, other)
        examples = [Preferred(c.prompt, c.target, r.target) for c, r in zip(chosen, rejected, strict=True)]
        smoothing = self.label_smoothing
        return PreferenceObjective(examples, pad_token(tokenizer), beta=self.beta, label_smoothing=smoothing)


METHOD = Dpo
