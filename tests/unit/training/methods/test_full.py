"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from torch import nn

from services.training.engine.methods.full import Full


def test_every_weight_is_trained_and_the_model_stays_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model.requires_grad_(False)
    adapted = Full().adapt(model)
    assert all(weight.requires_grad for weight in adapted.parameters())
    assert Full().merge(adapted) is model
