"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306): adapters learn from single ratings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from services.kit.prompts import Prompts
from services.training.domain.tasks import GenerationTask
from services.training.engine.low_rank import LowRank
from services.training.engine.method_capabilities import Footprint, pad_token
from services.training.engine.model_shape import Shape
from services.training.engine.preferences import Rated, RatingObjective, is_good, with_value
from services.training.engine.prompts import training_pairs


@dataclass(frozen=True, slots=True)
class Kto(LowRank):
    """Learns from ratings: column `rating_field` says whether the task's target was a good answer."""

    rating_field: str = "rating"
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    kind: Literal["kto"] = "kto"

    TASKS: ClassVar[tuple[str, ...]] = ("generation",)
    COLUMN: ClassVar[str] = "rating_field"

    def footprint(self, shape: Shape) -> Footprint:
        """See `Plannable.footprint`; a batch compares each answer with another example's."""
        return replace(LowRank.footprint(self, shape), min_batch=2)

    def objective(
        self, task: GenerationTask, prompts: Prompts, tokenizer: Any, rows: Sequence[Mapping[str, str]]
    ) -> RatingObjective:
        """See `LearnsFromPeople.objective`."""
        field = "spec.kto.rating_field"
        found = with_value(rows, self.rating_field, field)
        pairs = training_pairs(prompts, tokenizer, task, found)
        good = [is_good(row[self.rating_field], row["record_id"], field) for row in found]
        return RatingObjective(
            [Rated(pair, each) for pair, each in zip(pairs, good, strict=True)],
            pad_token(tokenizer),
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )


METHOD = Kto
