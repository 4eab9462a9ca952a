"""Low-rank adapters: only they are trained, and merging them leaves a plain model that computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from services.kit.errors import InvalidArgumentError
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.methods.lora import Lora


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_only_the_adapters_are_trained_and_merging_keeps_what_they_learnt(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    method = Lora(r=2, alpha=4, **options)
    adapted = method.adapt(model)
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert any("magnitude" in name for name in trained) == method.use_dora
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if name in trained:
                weight.normal_()
    values = torch.randn(3, 4)
    expected = adapted(values)
    merged = method.merge(adapted)
    assert [type(module) for module in merged.children()] == [nn.Linear, nn.ReLU, nn.Linear]
    assert torch.allclose(merged(values), expected, atol=1e-5)


def test_rslora_scales_by_the_square_root_of_the_rank() -> None:
    def update(method: Lora) -> torch.Tensor:
        layer = nn.Linear(4, 4)
        before = layer.weight.detach().clone()
        adapted: Any = method.adapt(nn.Sequential(layer))
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_" in name:
                    weight.fill_(1.0)
        return method.merge(adapted).get_parameter("0.weight") - before

    # A matrix of ones of rank r times alpha / r, against alpha / sqrt(r).
    assert torch.allclose(update(Lora(r=4, alpha=8)), torch.full((4, 4), 4 * 8 / 4.0), atol=1e-5)
    assert torch.allclose(update(Lora(r=4, alpha=8, use_rslora=True)), torch.full((4, 4), 4 * 8 / 2.0), atol=1e-5)


def test_layers_that_the_model_lacks_are_refused_with_their_field() -> None:
    with pytest.raises(InvalidArgumentError, match=r"spec\.lora\.target_modules: .*no_such") as refused:
        Lora(target_modules=("no_such",)).adapt(nn.Sequential(nn.Linear(4, 4)))
    assert [violation.field for violation in refused.value.violations] == ["spec.lora.target_modules"]


def test_an_option_that_came_later_changes_the_identity_only_where_it_is_used() -> None:
    def digest(method: Lora) -> str:
        task = TextClassificationTask("label")
        return TrainingSpec("m", "b", "d", "", "0" * 64, task, method, Optimization(max_steps=2)).digest("base")

    # The same as `test_a_spec_stored_by_an_earlier_version_is_read` holds for what was stored before.
    assert digest(Lora()) == "e51e27b7cb31aabd89552bfd247f35816802ca4e7037968a82bc1fd36f956dc9"
    assert len({digest(Lora()), digest(Lora(use_dora=True)), digest(Lora(use_rslora=True))}) == 3
