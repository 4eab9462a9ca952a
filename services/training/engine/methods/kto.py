"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306): adapters learn from single ratings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from services.training.engine.low_rank import LowRank


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


METHOD = Kto
