"""A fine-tuning method of another package: only the biases are trained (Ben Zaken et al. 2021, arXiv:2106.10199)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class BitFit:
    """`norms` trains the weights of the normalisations as well."""

    norms: bool = False
    kind: Literal["bitfit"] = "bitfit"

    def adapt(self, model: nn.Module) -> nn.Module:
        """Leaves the biases, and on request the normalisations, to be trained."""
        for name, weight in model.named_parameters():
            weight.requires_grad_(name.endswith("bias") or (self.norms and "norm" in name.lower()))
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """The model itself: nothing was added to it."""
        return model
