"""Low-rank adapters: only they are trained, and merging them leaves a plain model that computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from services.kit.errors import InvalidArgumentError
from services.training.engine.methods.lora import Lora


def test_only_the_adapters_are_trained_and_merging_keeps_what_they_learnt() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    adapted = Lora(r=2, alpha=4).adapt(model)
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if name in trained:
                weight.normal_()
    values = torch.randn(3, 4)
    expected = adapted(values)
    merged = Lora(r=2, alpha=4).merge(adapted)
    assert [type(module) for module in merged.children()] == [nn.Linear, nn.ReLU, nn.Linear]
    assert torch.allclose(merged(values), expected, atol=1e-5)


def test_layers_that_the_model_lacks_are_refused_with_their_field() -> None:
    with pytest.raises(InvalidArgumentError, match=r"spec\.lora\.target_modules: .*no_such") as refused:
        Lora(target_modules=("no_such",)).adapt(nn.Sequential(nn.Linear(4, 4)))
    assert [violation.field for violation in refused.value.violations] == ["spec.lora.target_modules"]
