"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from services.training.domain.training_spec import LATER
from services.training.engine.low_rank import LowRank


@dataclass(frozen=True, slots=True)
class Lora(LowRank):
    """Adapters of rank `r` on the layers `target_modules`, or on every linear layer if none is named."""

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    use_dora: bool = field(default=False, metadata=LATER)
    use_rslora: bool = field(default=False, metadata=LATER)
    kind: Literal["lora"] = "lora"


METHOD = Lora
