"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from services.training.domain.strategies import Strategy
from services.training.engine.method_capabilities import Footprint
from services.training.engine.model_shape import Shape

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Full:
    """Needs four times the model's size in memory: weights, gradients and AdamW's two moments."""

    kind: Literal["full"] = "full"

    STRATEGIES: ClassVar[tuple[Strategy, ...]] = ("single", "ddp", "fsdp", "tp")

    def adapt(self, model: nn.Module) -> nn.Module:
        """See `Method.adapt`."""
        model.requires_grad_(True)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """See `Method.merge`."""
        return model

    def footprint(self, shape: Shape) -> Footprint:
        """See `Plannable.footprint`."""
        return Footprint(shape.parameters)


METHOD = Full
