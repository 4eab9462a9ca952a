"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from services.kit.errors import FieldViolation, InvalidArgumentError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Lora:
    """Adapters of rank `r` on the layers `target_modules`, or on every linear layer if none is named."""

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    kind: Literal["lora"] = "lora"

    def adapt(self, model: nn.Module) -> nn.Module:
        """See `Method.adapt`."""
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # only its ratio to r counts
            lora_dropout=self.dropout,
            target_modules=list(self.target_modules) or "all-linear",
            bias="none",
        )
        try:
            adapted: nn.Module = get_peft_model(model, config)
        except ValueError as error:
            # peft's message names the modules that it did not find.
            violation = FieldViolation("spec.lora.target_modules", str(error))
            raise InvalidArgumentError(
                f"spec.lora.target_modules: {error}", reason="METHOD_UNSUITABLE", violations=[violation]
            ) from error
        return adapted

    def merge(self, model: nn.Module) -> nn.Module:
        """See `Method.merge`."""
        adapted: Any = model
        merged: nn.Module = adapted.merge_and_unload()
        return merged


METHOD = Lora
