"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from services.training.domain.training_spec import LATER
from services.training.engine.low_rank import LowRank


@dataclass(frozen=True, slots=True)
class Lora(LowRank):
    """`use_dora` learns direction and magnitude of a weight separately (arXiv:2402.09353).

    `use_rslora` divides `alpha` by sqrt(r) instead of r (arXiv:2312.03732).
    """

    use_dora: bool = field(default=False, metadata=LATER)
    use_rslora: bool = field(default=False, metadata=LATER)
    kind: Literal["lora"] = "lora"

    @property
    def more_options(self) -> Mapping[str, Any]:
        """See `LowRank.more_options`."""
        return {"use_dora": self.use_dora, "use_rslora": self.use_rslora}


METHOD = Lora
