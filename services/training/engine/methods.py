"""Which weights are trained: the methods, by composition around one loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.training.domain.recipe import FullMethod, LoraMethod

if TYPE_CHECKING:
    from torch import Tensor, nn


def adapt(model: nn.Module, method: LoraMethod | FullMethod) -> nn.Module:
    """The model with the method's weights trainable and all others frozen."""
    if isinstance(method, FullMethod):
        model.requires_grad_(True)
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=method.r,
        lora_alpha=method.alpha,  # type: ignore[arg-type]  # only its ratio to r counts
        lora_dropout=method.dropout,
        target_modules=list(method.target_modules) or "all-linear",
        bias="none",
    )
    adapted: nn.Module = get_peft_model(model, config)
    return adapted


def plain_attention(model: nn.Module) -> None:
    """Lets every transformer in the model compute attention as plain matrix products."""
    for module in model.modules():
        choose: Any = getattr(module, "set_attn_implementation", None)
        if choose is not None:
            choose("eager")
            return


def merge(model: nn.Module) -> nn.Module:
    """The plain model with its adapters merged in; the model itself where it has none."""
    unload: Any = getattr(model, "merge_and_unload", None)
    return unload() if unload is not None else model


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training moves, by name, detached and contiguous."""
    return {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}


def load_trainable_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts back what `trainable_state` took.

    Raises:
        ValueError: the names differ: the checkpoint is of another recipe.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[:3]
        raise ValueError(f"the checkpoint is of another recipe; for example {', '.join(odd)} is on one side only")
    import torch

    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
