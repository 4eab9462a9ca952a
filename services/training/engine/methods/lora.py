"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from services.training.domain.strategies import Strategy
from services.training.domain.training_spec import LATER
from services.training.engine.low_rank import LowRank
from services.training.engine.method_capabilities import Footprint
from services.training.engine.model_shape import Shape


@dataclass(frozen=True, slots=True)
class Lora(LowRank):
    """`use_dora` learns direction and magnitude of a weight separately (arXiv:2402.09353).

    `use_rslora` divides `alpha` by sqrt(r) instead of r (arXiv:2312.03732).
    """

    use_dora: bool = field(default=False, metadata=LATER)
    use_rslora: bool = field(default=False, metadata=LATER)
    kind: Literal["lora"] = "lora"

    @property
    def STRATEGIES(self) -> tuple[Strategy, ...]:  # noqa: N802 - a class variable of other methods
        """See `Method`; DoRA computes norms of whole weights, of which fsdp and tp have parts."""
        return ("single", "ddp") if self.use_dora else ("single", "ddp", "fsdp", "tp")

    @property
    def more_options(self) -> Mapping[str, Any]:
        """See `LowRank.more_options`."""
        return {"use_dora": self.use_dora, "use_rslora": self.use_rslora}

    def footprint(self, shape: Shape) -> Footprint:
        """See `Plannable.footprint`; DoRA has a magnitude for each output of a layer."""
        found = LowRank.footprint(self, shape)
        if not self.use_dora:
            return found
        magnitudes = sum(number * layer.after for layer, number in shape.adapted(self.target_modules))
        return replace(found, trained=found.trained + magnitudes)


METHOD = Lora
