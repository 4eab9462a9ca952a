"""Layers of a transformer in fewer passes over memory, for training in fp32 on a processor.

On a processor the matrix products of a small model take half of a step; the rest are sums and products of whole
activations, each of which reads and writes memory and makes a tensor that is freed at once. What is here computes the
same with fewer of them, and keeps less for the backward pass. Backward passes by hand, as in Unsloth's kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

Forward = Callable[..., Tensor]


class FusedLayers:
    """Within each `with` block, low-rank adapters, RMS norms and gated feed-forward layers are computed by this module.

    A layer whose code computes something else, as an example shows, stays as it is.
    """

    def __init__(self, model: nn.Module) -> None:
        training = model.training
        # Noise would make the example's results differ, and use up random numbers of the training.
        model.eval()
        self._forwards = [
            (module, forward) for module in model.modules() if (forward := _fused_forward(module)) is not None
        ]
        model.train(training)

    def __enter__(self) -> None:
        for module, forward in self._forwards:
            vars(module)["forward"] = forward

    def __exit__(self, *_: object) -> None:
        for module, _forward in self._forwards:
            del vars(module)["forward"]


def _fused_forward(module: nn.Module) -> Forward | None:
    if "forward" in vars(module):
        return None
    if hasattr(module, "lora_A"):
        return _low_rank_forward(module)
    name, layer = type(module).__name__, cast("Any", module)
    if name.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        return _if_equal(module, partial(_rms_norm, module), layer.weight.numel())
    if name.endswith("MLP") and all(hasattr(module, each) for each in ("gate_proj", "up_proj", "down_proj")):
        return _if_equal(module, partial(_gated, module), layer.gate_proj.in_features)
    return None


def _if_equal(module: nn.Module, forward: Forward, width: int) -> Forward | None:
    """The function, if the layer's own code gives the same."""
    example = torch.linspace(-2, 2, 3 * width).reshape(1, 3, width)
    with torch.no_grad():
        return forward if torch.allclose(module(example), forward(example), rtol=1e-4, atol=1e-5) else None


def _low_rank_forward(layer: Any) -> Forward | None:
    """For an adapter of PEFT on a linear layer: one, without dropout, that adds its product and nothing else."""
    from peft.tuners.lora.layer import Linear

    active = list(getattr(layer, "active_adapters", ()))
    if type(layer) is not Linear or type(layer.base_layer) is not nn.Linear or len(active) != 1:
        return None
    [name] = active
    plain = isinstance(layer.lora_dropout[name], nn.Identity) and name not in layer.lora_variant
    if not plain or layer.lora_A[name].bias is not None or layer.lora_B[name].bias is not None:
        return None
    own, down, up, scale = layer.forward, layer.lora_A[name], layer.lora_B[name], layer.scaling[name]

    def forward(values: Tensor, *args: Any, **options: Any) -> Tensor:
        # Preferences compare with the model as it was, whose adapters are disabled meanwhile.
        if layer.disable_adapters or layer.merged or args or options:
            return own(values, *args, **options)
        base = layer.base_layer
        return _apply(_LowRank, values, base.weight, base.bias, down.weight, up.weight, scale)

    return forward


def _apply(function: Any, *values: Any) -> Tensor:
    return cast("Tensor", function.apply(*values))


class _LowRank(Function):
    """`x W' + b + s (x A') B'`: the adapter's part is added where the layer's own stands."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        flat = values.reshape(-1, values.shape[-1])  # [positions, in]
        inner = flat @ down.t()  # [positions, rank]
        result = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        result.addmm_(inner, up.t(), alpha=scale)
        ctx.save_for_backward(flat, weight, down, up, inner)
        ctx.scale, ctx.shape = scale, values.shape
        return result.view(*values.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, down, up, inner = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0])  # [positions, out]
        of_inner = (gradient @ up).mul_(ctx.scale)
        of_values = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_values = (gradient @ weight).addmm_(of_inner, down).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            of_weight = gradient.t() @ flat
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0)
        return of_values, of_weight, of_bias, of_inner.t() @ flat, (gradient.t() @ inner).mul_(ctx.scale), None


def _rms_norm(layer: Any, values: Tensor) -> Tensor:
    return _apply(_RmsNorm, values, layer.weight, layer.variance_epsilon)


class _RmsNorm(Function):
    """Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        squares = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square_()
        inverse = squares.div_(values.shape[-1]).add_(epsilon).rsqrt_()  # [..., 1]
        ctx.save_for_backward(values, weight, inverse)
        result: Tensor = (values * inverse).mul_(weight)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, inverse = ctx.saved_tensors
        of_values = of_weight = None
        scaled = gradients[0] * values
        if ctx.needs_input_grad[1]:
            of_weight = (scaled * inverse).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            along = (scaled @ weight).unsqueeze(-1).mul_(inverse.pow(3)).div_(values.shape[-1])
            of_values = torch.mul(gradients[0], weight, out=scaled).mul_(inverse).addcmul_(values, along, value=-1)
        return of_values, of_weight, None


def _gated(layer: Any, values: Tensor) -> Tensor:
    product = _apply(_Gated, layer.gate_proj(values), layer.up_proj(values))
    return cast("Tensor", layer.down_proj(product))


class _Gated(Function):
    """`silu(gate) * up` (Shazeer 2020, arXiv:2002.05202); the activation is computed again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        of_up = functional.silu(gate).mul_(gradients[0])
        of_gate = gradients[0] * up
        torch.ops.aten.silu_backward.grad_input(of_gate, gate, grad_input=of_gate)
        return of_gate, of_up
