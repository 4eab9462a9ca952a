"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290): adapters learn which answer was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from services.training.engine.low_rank import LowRank


@dataclass(frozen=True, slots=True)
class Dpo(LowRank):
    """Learns from pairs: the task's target is the chosen answer, column `rejected_field` has the rejected one."""

    rejected_field: str = "rejected"
    beta: float = 0.1
    label_smoothing: float = 0.0
    kind: Literal["dpo"] = "dpo"

    TASKS: ClassVar[tuple[str, ...]] = ("generation",)
    COLUMN: ClassVar[str] = "rejected_field"


METHOD = Dpo
