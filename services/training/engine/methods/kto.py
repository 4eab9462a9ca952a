"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306): adapters learn from single ratings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from services.training.engine.low_rank import add_adapters

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Kto:
    """Learns from ratings: column `rating_field` says whether the task's target was a good answer."""

    rating_field: str = "rating"
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    kind: Literal["kto"] = "kto"

    TASKS: ClassVar[tuple[str, ...]] = ("generation",)
    COLUMN: ClassVar[str] = "rating_field"

    def adapt(self, model: nn.Module) -> nn.Module:
        """See `Method.adapt`; the reference is the model with its adapters disabled."""
        return add_adapters(
            model,
            r=self.r,
            alpha=self.alpha,
            dropout=self.dropout,
            target_modules=self.target_modules,
            method=self.kind,
        )

    def merge(self, model: nn.Module) -> nn.Module:
        """See `Method.merge`."""
        adapted: Any = model
        merged: nn.Module = adapted.merge_and_unload()
        return merged


METHOD = Kto
