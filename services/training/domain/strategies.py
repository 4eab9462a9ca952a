"""How the processes of a training share its work."""

from __future__ import annotations

from typing import Literal

Strategy = Literal["single", "ddp", "fsdp", "tp"]
"""`ddp`: each process has the whole model and its share of each batch. `fsdp`: each has its share of the model, too.

`tp`, tensor parallel: each has a part of every layer, and computes that part of every example."""
STRATEGIES: tuple[Strategy, ...] = ("single", "ddp", "fsdp", "tp")
OVER_EXAMPLES: tuple[Strategy, ...] = ("single", "ddp", "fsdp")
"""Those whose processes share the examples of a batch."""
WHOLE_LAYERS: tuple[Strategy, ...] = ("single", "ddp")
"""Those whose processes have each layer whole, so that `services.training.engine.fused` can compute it."""
SPLIT_FAMILIES = frozenset({"gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3", "smollm3"})
"""`model_type` of the base models whose layers `tp` can split: transformers has a plan for them that torch's own
parallel styles cover."""
