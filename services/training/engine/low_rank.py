"""Low-rank adapters on a model's linear layers, for all methods that train them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from services.kit.errors import FieldViolation, InvalidArgumentError

if TYPE_CHECKING:
    from torch import nn


class LowRank:
    """Adapts and merges a model, for methods with the options `r`, `alpha`, `dropout` and `target_modules`."""

    __slots__ = ()

    def adapt(self, model: nn.Module) -> nn.Module:
        """See `Method.adapt`; with its adapters disabled, the model computes what it did before."""
        method: Any = self
        return add_adapters(
            model,
            r=method.r,
            alpha=method.alpha,
            dropout=method.dropout,
            target_modules=method.target_modules,
            use_dora=getattr(method, "use_dora", False),
            use_rslora=getattr(method, "use_rslora", False),
            method=method.kind,
        )

    def merge(self, model: nn.Module) -> nn.Module:
        """See `Method.merge`."""
        adapted: Any = model
        merged: nn.Module = adapted.merge_and_unload()
        return merged


def add_adapters(
    model: nn.Module,
    *,
    r: int,
    alpha: float,
    dropout: float,
    target_modules: Sequence[str],
    use_dora: bool = False,
    use_rslora: bool = False,
    method: str,
) -> nn.Module:
    """The model with adapters, which are its only trainable weights; at first they change no output.

    Args:
        model: a torch module.
        r: rank.
        alpha: scale: the update is multiplied by alpha / r, or by alpha / sqrt(r) with `use_rslora`.
        dropout: dropout on the adapters' input.
        target_modules: names of linear layers; every linear layer if empty.
        use_dora: learn direction and magnitude of a weight separately (arXiv:2402.09353).
        use_rslora: rank-stabilised scale (arXiv:2312.03732).
        method: name of the method in a spec, for errors.

    Raises:
        InvalidArgumentError: the model does not have these layers.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft's type is int, but it only divides by r
        lora_dropout=dropout,
        target_modules=list(target_modules) or "all-linear",
        use_dora=use_dora,
        use_rslora=use_rslora,
        bias="none",
    )
    try:
        adapted: nn.Module = get_peft_model(model, config)
    except ValueError as error:
        # peft's own message lists the missing modules.
        field = f"spec.{method}.target_modules"
        raise InvalidArgumentError(
            f"{field}: {error}", reason="METHOD_UNSUITABLE", violations=[FieldViolation(field, str(error))]
        ) from error
    return adapted
