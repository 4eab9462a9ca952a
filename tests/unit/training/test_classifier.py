"""Heads of classifiers: that of ordered labels, and what a student learns where labels are independent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from services.training.engine.classifier import ordered_head
from services.training.engine.distillation import DistillationObjective


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_an_ordered_head_gives_the_log_probabilities_of_the_proportional_odds_model(labels: int) -> None:
    torch.manual_seed(1)
    head: Any = ordered_head(8, labels)
    hidden = torch.randn(6, 8) * 3
    with torch.no_grad():
        head.distances.copy_(torch.randn(labels - 2))
        found = head(hidden)
        cuts = torch.cat([head.first, head.first + torch.nn.functional.softplus(head.distances).cumsum(0)])
        below = torch.sigmoid(cuts - head.severity(hidden))
    edges = torch.cat([torch.zeros(6, 1), below, torch.ones(6, 1)], 1)
    assert found.exp() == pytest.approx(edges.diff(dim=1), abs=1e-6)
    # So a softmax changes nothing.
    assert found.softmax(-1) == pytest.approx(found.exp(), abs=1e-6)


def test_an_ordered_head_is_finite_far_from_its_cuts() -> None:
    head: Any = ordered_head(1, 4)
    hidden = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    with torch.no_grad():
        head.severity.weight.fill_(1.0)
    found = head(hidden)
    assert found.argmax(-1).tolist() == [3, 0]
    loss = torch.nn.functional.cross_entropy(found, torch.tensor([0, 3]))
    assert torch.isfinite(found).all()
    assert all(torch.isfinite(each).all() for each in torch.autograd.grad(loss, list(head.parameters())))


class _Fixed(torch.nn.Module):
    """A classifier of one layer that answers always the same."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.given = torch.tensor(logits)

    def encoder(self, **inputs: Any) -> Any:
        state = torch.ones(*inputs["input_ids"].shape, 2)
        return type("Output", (), {"last_hidden_state": state, "hidden_states": (state, state)})

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.given.expand(len(hidden), -1)


def test_a_student_of_independent_labels_learns_each_probability() -> None:
    teacher, shifted = _Fixed([1.0, -2.0]), _Fixed([4.0, 1.0])

    def loss(student: torch.nn.Module, *, independent: bool) -> float:
        learns = DistillationObjective(teacher, [[5, 6]], 0, [0], 1.0, independent=independent)
        return float(learns.loss(student, [0], torch.device("cpu"))[0])

    assert loss(teacher, independent=True) == pytest.approx(0, abs=1e-6)
    # A softmax does not see what all logits have in common; a threshold does.
    assert loss(shifted, independent=False) == pytest.approx(0, abs=1e-6)
    given, wanted = torch.sigmoid(shifted.given), torch.sigmoid(teacher.given)
    divergence = wanted * (wanted / given).log() + (1 - wanted) * ((1 - wanted) / (1 - given)).log()
    assert loss(shifted, independent=True) == pytest.approx(float(divergence.mean()), rel=1e-5)
