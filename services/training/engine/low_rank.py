"""Low-rank adapters on a model's linear layers, for every method that trains by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from services.kit.errors import FieldViolation, InvalidArgumentError

if TYPE_CHECKING:
    from torch import nn


class LowRank:
    """How a method with options `r`, `alpha`, `dropout` and `target_modules` adapts a model and merges it again."""

    __slots__ = ()

    def adapt(self, model: nn.Module) -> nn.Module:
        """See `Method.adapt`; without its adapters the model is what it was."""
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
    """The model with adapters, which alone are trainable; at first they change nothing.

    Args:
        model: a torch module.
        r: rank.
        alpha: scale: the update is multiplied by alpha / r, or alpha / sqrt(r) with `use_rslora`.
        dropout: on the adapters' input.
        target_modules: names of linear layers; every linear layer if empty.
        use_dora: learn direction and magnitude of a weight apart (arXiv:2402.09353).
        use_rslora: arXiv:2312.03732.
        method: name of the method in a spec, for errors.

    Raises:
        InvalidArgumentError: the model lacks the layers.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # only its ratio to r counts
        lora_dropout=dropout,
        target_modules=list(target_modules) or "all-linear",
        use_dora=use_dora,
        use_rslora=use_rslora,
        bias="none",
    )
    try:
        adapted: nn.Module = get_peft_model(model, config)
    except ValueError as error:
        # peft's message names the modules that it did not find.
        field = f"spec.{method}.target_modules"
        raise InvalidArgumentError(
            f"{field}: {error}", reason="METHOD_UNSUITABLE", violations=[FieldViolation(field, str(error))]
        ) from error
    return adapted
