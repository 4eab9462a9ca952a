"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from services.training.domain.training_spec import LATER
from services.training.engine.low_rank import add_adapters

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Lora:
    """Adapters of rank `r` on the layers `target_modules`, or on every linear layer if none is named."""

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    use_dora: bool = field(default=False, metadata=LATER)
    use_rslora: bool = field(default=False, metadata=LATER)
    kind: Literal["lora"] = "lora"

    def adapt(self, model: nn.Module) -> nn.Module:
        """See `Method.adapt`."""
        return add_adapters(
            model,
            r=self.r,
            alpha=self.alpha,
            dropout=self.dropout,
            target_modules=self.target_modules,
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
            method=self.kind,
        )

    def merge(self, model: nn.Module) -> nn.Module:
        """See `Method.merge`."""
        adapted: Any = model
        merged: nn.Module = adapted.merge_and_unload()
        return merged


METHOD = Lora
