"""Selects how a model computes attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

SHORT = 512
"""Tokens. On a processor the backward pass of fused attention costs more than the whole score matrix of so short a text
(SmolLM2-135M, 4 x 130 tokens: a quarter of the step); the matrix grows with the square of the length."""


def plain_attention(model: nn.Module) -> None:
    """Lets every transformer in the model compute attention as plain matrix products."""
    for module in model.modules():
        choose: Any = getattr(module, "set_attn_implementation", None)
        if choose is not None:
            choose("eager")
            return
