"""Low-rank adapters on a model's linear layers, for all methods that train them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.kit.errors import FieldViolation, InvalidArgumentError
from services.training.engine.method_capabilities import Footprint
from services.training.engine.model_shape import Shape

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class LowRank:
    """Adapters of rank `r`, scaled by `alpha`, on the layers `target_modules`, or on all linear layers if empty."""

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    kind: str = ""

    @property
    def more_options(self) -> Mapping[str, Any]:
        """Further arguments of `peft.LoraConfig`."""
        return {}

    def adapt(self, model: nn.Module) -> nn.Module:
        """See `Method.adapt`; the adapters change no output at first, and none while they are disabled."""
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft's type is int, but it only divides by r
            lora_dropout=self.dropout,
            target_modules=list(self.target_modules) or "all-linear",
            bias="none",
            **self.more_options,
        )
        try:
            adapted: nn.Module = get_peft_model(model, config)
        except ValueError as error:
            # peft's own message lists the missing modules.
            field = f"spec.{self.kind}.target_modules"
            raise InvalidArgumentError(
                f"{field}: {error}", reason="METHOD_UNSUITABLE", violations=[FieldViolation(field, str(error))]
            ) from error
        return adapted

    def merge(self, model: nn.Module) -> nn.Module:
        """See `Method.merge`."""
        adapted: Any = model
        merged: nn.Module = adapted.merge_and_unload()
        return merged

    def footprint(self, shape: Shape) -> Footprint:
        """See `Plannable.footprint`."""
        adapted = shape.adapted(self.target_modules)
        return Footprint(sum(number * self.r * (layer.before + layer.after) for layer, number in adapted))
