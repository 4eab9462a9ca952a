"""Linear layers by oneDNN: the same sums, and only while it is asked for."""

from __future__ import annotations

import torch
from torch import nn

from services.training.engine.linears import onednn_linears


def test_the_sums_are_the_same_and_the_model_learns_again_afterwards() -> None:
    torch.manual_seed(3)
    # The last layer's weights are shared with another, as those of many language models are.
    model = nn.Sequential(nn.Linear(24, 48), nn.SiLU(), nn.Linear(48, 24, bias=False), nn.Linear(24, 48))
    model[3].weight = model[0].weight
    values = torch.randn(2, 5, 24)
    expected = model(values)
    with torch.inference_mode(), onednn_linears(model):
        found = model(values)
    assert torch.allclose(found, expected, atol=1e-5)
    model(values).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_layers_of_another_kind_stay_what_they_are() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    half = nn.Linear(8, 8).to(torch.bfloat16)
    doubled, values = Doubled(8, 8), torch.randn(3, 8)
    with torch.inference_mode(), onednn_linears(nn.ModuleList([doubled, half])):
        assert torch.equal(doubled(values), 2 * nn.functional.linear(values, doubled.weight, doubled.bias))
        assert half(values.to(torch.bfloat16)).dtype is torch.bfloat16
