"""Kto trains adapters, and the model without them is what it was: its reference."""

from __future__ import annotations

import torch

from services.training.engine.methods.kto import Kto
from tests.unit.training.methods.small import small_writer


def test_the_model_without_its_adapters_is_the_reference_and_merging_keeps_them() -> None:
    model = small_writer()
    ids = torch.tensor([[7, 20, 31]])
    before = model(input_ids=ids).logits
    method = Kto(r=2, alpha=4)
    adapted = method.adapt(model)
    trained = [weight for name, weight in adapted.named_parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in trained:
            weight.normal_()
        tuned = adapted(input_ids=ids).logits
        assert not torch.allclose(tuned, before, atol=1e-2)
        with adapted.disable_adapter():  # type: ignore[operator]
            assert torch.equal(adapted(input_ids=ids).logits, before)
        assert torch.allclose(method.merge(adapted)(input_ids=ids).logits, tuned, atol=1e-4)


def test_the_column_that_it_reads_is_checked_with_that_of_the_task() -> None:
    assert Kto.COLUMN in Kto.__dataclass_fields__
