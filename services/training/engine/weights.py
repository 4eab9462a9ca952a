"""Saves the trainable weights of a model for a checkpoint, and restores them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The trainable weights by name, detached and contiguous."""
    return {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}


def load_trainable_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Restores the result of `trainable_state`.

    Raises:
        ValueError: the names differ, so the checkpoint belongs to another training spec.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[:3]
        raise ValueError(
            f"the checkpoint belongs to another training spec; for example {', '.join(odd)} is on one side only"
        )
    import torch

    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
