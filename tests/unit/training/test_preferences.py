"""The losses of DPO and KTO are those of their papers, and learning by them makes the preferred answer likelier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tidemill.training.v1 import run_pb2
from transformers import AutoModelForCausalLM

from services.kit.errors import FailedPreconditionError, InvalidArgumentError
from services.kit.grpc.validation import validate
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Method, Optimization, TrainingSpec
from services.training.engine.loop import Cancelled, Checkpoint, train
from services.training.engine.methods.dpo import Dpo
from services.training.engine.methods.kto import Kto
from services.training.engine.preferences import (
    PreferenceObjective,
    Preferred,
    Rated,
    RatingObjective,
    answer_log_probs,
    dpo_loss,
    is_good,
    kto_loss,
    with_value,
)
from services.training.engine.tasks import Pair
from tests.models import make_language_model

_DEVICE = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language_model(tmp_path_factory.mktemp("models") / "llama", ["the room was good and the staff kind"])


def load(folder: Path) -> Any:
    made: Any = AutoModelForCausalLM
    return made.from_pretrained(str(folder), dtype=torch.float32).eval()


def _reference_log_probs(logits: torch.Tensor, labels: Sequence[int], prompt: int) -> float:
    """As TRL takes it: softmax over all positions, shifted by one, summed over the answer."""
    probabilities = logits[0, :-1].log_softmax(-1)
    return float(sum(probabilities[at - 1, labels[at]] for at in range(prompt, len(labels))))


def test_the_loss_is_that_of_the_paper_on_the_same_logits(base: Path) -> None:
    model = load(base)
    prompts, chosen, rejected = [[7, 20, 31], [9, 4]], [[44, 2], [12, 30, 2]], [[50, 51, 2], [8, 2]]
    ours, theirs = {}, {}
    for side, answers in (("chosen", chosen), ("rejected", rejected)):
        pairs = [Pair(p, a) for p, a in zip(prompts, answers, strict=True)]
        with torch.no_grad():
            ours[side], _ = answer_log_probs(model, pairs, 0, _DEVICE)
            theirs[side] = [
                _reference_log_probs(model(input_ids=torch.tensor([p + a])).logits, p + a, len(p))
                for p, a in zip(prompts, answers, strict=True)
            ]
        assert ours[side].tolist() == pytest.approx(theirs[side], abs=1e-4)
    # The reference of each answer, as if another model had given it.
    reference = {"chosen": [-9.0, -14.0], "rejected": [-13.0, -11.0]}
    ratios = {side: ours[side] - torch.tensor(reference[side]) for side in ours}
    for beta, smoothing in ((0.1, 0.0), (0.5, 0.2)):
        margins = [
            beta * ((theirs["chosen"][i] - reference["chosen"][i]) - (theirs["rejected"][i] - reference["rejected"][i]))
            for i in range(2)
        ]
        expected = sum(
            -(1 - smoothing) * math.log(1 / (1 + math.exp(-m))) - smoothing * math.log(1 / (1 + math.exp(m)))
            for m in margins
        )
        found = dpo_loss(ratios["chosen"], ratios["rejected"], beta=beta, label_smoothing=smoothing)
        assert float(found) == pytest.approx(expected / 2, abs=1e-4)


def test_the_loss_of_ratings_is_that_of_the_paper() -> None:
    ratios, good, mismatched = [0.7, -0.4, 1.5], [True, False, False], [0.3, -0.1, 0.7]
    divergence, beta, weights = max(0.0, sum(mismatched) / 3), 0.3, (1.2, 0.8)

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    # Positive for a good answer that became likelier, or a bad one that became less likely.
    gains = [beta * (r - divergence) * (1 if g else -1) for r, g in zip(ratios, good, strict=True)]
    expected = sum(weights[0 if g else 1] * (1 - sigmoid(gain)) for gain, g in zip(gains, good, strict=True))
    moved = torch.tensor(mismatched, requires_grad=True)
    found = kto_loss(
        torch.tensor(ratios, requires_grad=True), torch.tensor(good), moved,
        beta=beta, desirable_weight=weights[0], undesirable_weight=weights[1],
    )  # fmt: skip
    assert found.item() == pytest.approx(expected / 3, abs=1e-6)
    found.backward()  # type: ignore[no-untyped-call]
    assert moved.grad is None
    # A divergence below zero is an error of its estimate.
    below = kto_loss(
        torch.tensor(ratios), torch.tensor(good), torch.tensor([-5.0]), beta=1.0, desirable_weight=1.0,
        undesirable_weight=1.0,
    )  # fmt: skip
    zero = kto_loss(
        torch.tensor(ratios), torch.tensor(good), torch.tensor([0.0]), beta=1.0, desirable_weight=1.0,
        undesirable_weight=1.0,
    )  # fmt: skip
    assert torch.equal(below, zero)


def _objective(kind: str) -> tuple[Method, Any]:
    prompts = [[7, 20 + i, 31] for i in range(6)]
    if kind == "dpo":
        preferred = [Preferred(p, [44, 2], [50, 51, 2]) for p in prompts]
        return Dpo(r=4, dropout=0.1), PreferenceObjective(preferred, 0, beta=0.1, label_smoothing=0.0)
    rated = [Rated(Pair(p, [44, 2] if i % 2 else [50, 51, 2]), bool(i % 2)) for i, p in enumerate(prompts)]
    rating = RatingObjective(rated, 0, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)
    return Kto(r=4, dropout=0.1), rating


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_the_preferred_answer_becomes_likelier_and_a_resumed_run_is_the_same(base: Path, kind: str) -> None:
    options = Optimization(max_steps=8, batch_size=3, learning_rate=0.01, checkpoint_every=100)
    pairs = [Pair([7, 22, 31], [44, 2]), Pair([7, 22, 31], [50, 51, 2])]
    before, _ = answer_log_probs(load(base), pairs, 0, _DEVICE)
    method, objective = _objective(kind)
    whole: Any = method.adapt(load(base))
    torch.manual_seed(5)
    start = {n: p.detach().clone() for n, p in whole.named_parameters() if p.requires_grad}
    expected = train(whole, objective, options, device=_DEVICE)
    assert expected.losses[-1] < expected.losses[0]
    # At first the model is its own reference: nothing is preferred.
    assert expected.losses[0] == pytest.approx(math.log(2) if kind == "dpo" else 0.5, abs=0.05)
    after, _ = answer_log_probs(whole, pairs, 0, _DEVICE)
    assert float(after[0] - before[0]) > float(after[1] - before[1])
    assert sum(objective.accuracy(whole, _DEVICE)) == len(objective.lengths)

    resumed: Any = method.adapt(load(base))
    with torch.no_grad():
        for name, weight in resumed.named_parameters():
            if name in start:
                weight.copy_(start[name])
    saved: list[Checkpoint] = []
    steps: list[int] = []
    with pytest.raises(Cancelled):
        train(
            resumed, _objective(kind)[1], options, device=_DEVICE, on_checkpoint=saved.append,
            on_step=lambda progress: steps.append(progress.step), should_stop=lambda: len(steps) == 3,
        )  # fmt: skip
    # Another process: it has neither the moved weights nor the references of before.
    fresh: Any = method.adapt(load(base))
    found = train(fresh, _objective(kind)[1], options, device=_DEVICE, resume=saved[-1])
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)


def test_a_record_without_a_judgement_is_left_out_and_none_at_all_is_an_error() -> None:
    rows = [{"rejected": "x"}, {"rejected": " "}]
    assert with_value(rows, "rejected", "spec.dpo.rejected_field") == rows[:1]
    with pytest.raises(FailedPreconditionError, match=r"spec\.dpo\.rejected_field: column 'rejected' is empty"):
        with_value(rows[1:], "rejected", "spec.dpo.rejected_field")


@pytest.mark.parametrize(
    ("rating", "good"), [("true", True), ("False", False), ("1", True), ("-1", False), ("0", False)]
)
def test_a_rating_is_true_or_a_number_above_zero(rating: str, good: bool) -> None:
    assert is_good(rating, "rec_1", "spec.kto.rating_field") is good


def test_another_rating_names_its_record() -> None:
    with pytest.raises(FailedPreconditionError, match=r"spec\.kto\.rating_field: the rating 'fine' of record rec_1"):
        is_good("fine", "rec_1", "spec.kto.rating_field")


@pytest.mark.parametrize("method", [Dpo(), Kto()])
def test_preferences_are_for_writers(method: Method) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        TrainingSpec("m", "b", "d", "", "0" * 64, TextClassificationTask("label"), method, Optimization(max_steps=2))
    assert [violation.field for violation in refused.value.violations] == [f"spec.{method.kind}"]


def test_the_contract_refuses_a_batch_of_one_rating_and_preferences_of_a_classifier() -> None:
    spec = run_pb2.TrainingSpec(
        base_model="b",
        model_name="m",
        generation=run_pb2.GenerationTask(
            prompt_template="{text}", target_field="answer", max_input_tokens=32, max_target_tokens=8
        ),
        kto=run_pb2.KtoMethod(rating_field="rating", beta=0.1, desirable_weight=1, undesirable_weight=1, r=4, alpha=8),
        optimization=run_pb2.Optimization(max_steps=2, batch_size=2, learning_rate=0.1),
        compression=run_pb2.Compression(variants=["fp32"]),
    )
    validate(spec)
    spec.optimization.batch_size = 1
    with pytest.raises(InvalidArgumentError, match="kto needs 2 or more"):
        validate(spec)
    spec.optimization.batch_size = 2
    spec.text_classification.label_field, spec.text_classification.max_input_tokens = "label", 32
    with pytest.raises(InvalidArgumentError, match="dpo and kto are for generation only"):
        validate(spec)
