"""The loss of embeddings beside a plain one, what does not count as a negative, and ranks of positives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tidemill.training.v1 import run_pb2
from torch.nn import functional

from services.kit.errors import InvalidArgumentError
from services.kit.probes import Probes, vector_answer
from services.training.domain.students import Student
from services.training.domain.tasks import TASKS, TextEmbeddingTask
from services.training.domain.training_spec import BaseModel, Optimization, TrainingSpec
from services.training.engine.embedding import (
    ContrastiveObjective,
    Related,
    build_embedder,
    packed,
    pooled,
    retrieved,
    unpacked,
)
from services.training.engine.methods.full import Full
from services.training.entrypoints.mapping import spec_from, spec_to
from services.training.worker.parity import vector_parity

CPU = torch.device("cpu")


class Table(torch.nn.Module):
    """Embeds a text of one token by its row."""

    def __init__(self, rows: int = 10, width: int = 6) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(rows, width, _weight=torch.randn(rows, width, generator=_seeded()))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return pooled(self.table(input_ids), attention_mask)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _related(text: str, positive: str, negative: str = "") -> Related:
    """Each text is one token: its number."""
    return Related(text, positive, negative, [int(text)], [int(positive)], [int(negative)] if negative else [])


def _by_hand(model: Table, text: int, positive: int, others: list[int], temperature: float = 0.05) -> torch.Tensor:
    """Minus the logarithm of the positive's share."""
    vectors = functional.normalize(model.table.weight, dim=-1)
    scores = vectors[[positive, *others]] @ vectors[text] / temperature
    return scores.logsumexp(0) - scores[0]


def test_the_other_positives_and_all_hard_negatives_of_the_batch_are_negatives() -> None:
    model = Table()
    examples = [_related("0", "1", "6"), _related("2", "3"), _related("4", "5", "7")]
    loss, read = ContrastiveObjective(examples, 9, temperature=0.05).loss(model, [0, 1, 2], CPU)
    wanted = [
        _by_hand(model, 0, 1, [3, 5, 6, 7]),
        _by_hand(model, 2, 3, [1, 5, 6, 7]),
        _by_hand(model, 4, 5, [1, 3, 6, 7]),
    ]
    assert loss.item() == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-5)
    assert read == 8


def test_equal_positives_and_those_of_the_same_text_are_no_negatives() -> None:
    model = Table()
    # The positive 1 belongs to two texts; the text 4 has two, one of which is in another batch; 3 is a hard negative
    # of one text and the positive of another.
    examples = [_related("0", "1"), _related("2", "1"), _related("4", "5"), _related("6", "3", "5"), _related("4", "3")]
    loss, _ = ContrastiveObjective(examples, 9, temperature=0.05).loss(model, [0, 1, 2, 3], CPU)
    wanted = [
        _by_hand(model, 0, 1, [5, 3, 5]),
        _by_hand(model, 2, 1, [5, 3, 5]),
        _by_hand(model, 4, 5, [1, 1]),
        _by_hand(model, 6, 3, [1, 1, 5, 5]),
    ]
    assert loss.item() == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-5)


def test_a_batch_without_any_negative_teaches_nothing_and_breaks_nothing() -> None:
    model = Table()
    objective = ContrastiveObjective([_related("0", "1"), _related("2", "1")], 9, temperature=0.05)
    loss, _ = objective.loss(model, [0, 1], CPU)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert torch.isfinite(model.table.weight.grad).all()  # type: ignore[arg-type]


def test_narrower_widths_are_learnt_beside_the_whole() -> None:
    model = Table()
    examples = [_related("0", "1"), _related("2", "3")]
    whole, _ = ContrastiveObjective(examples, 9, temperature=0.1).loss(model, [0, 1], CPU)
    both, _ = ContrastiveObjective(examples, 9, temperature=0.1, dimensions=(2,)).loss(model, [0, 1], CPU)
    with torch.no_grad():
        model.table.weight[:, 2:] = 0
    narrow, _ = ContrastiveObjective(examples, 9, temperature=0.1).loss(model, [0, 1], CPU)
    assert both.item() == pytest.approx((whole.item() + narrow.item()) / 2, rel=1e-5)


def test_padding_changes_no_embedding() -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    make: Any = BertModel
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = build_embedder(make(BertConfig(vocab_size=20, intermediate_size=32, **sizes))).eval()
    with torch.no_grad():
        alone = model(torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.long))
        beside = model(torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))
    assert torch.allclose(alone[0], beside[0], atol=1e-6)
    assert alone.norm().item() == pytest.approx(1)


def test_ranks_are_among_distinct_positives() -> None:
    queries = np.array([[1, 0], [0, 1], [0.9, 0.1], [1, 0]], dtype=np.float32)
    answers = np.array([[1, 0], [0.6, 0.8], [1, 0], [0.8, 0.6]], dtype=np.float32)
    found = retrieved(["a", "b", "c", "a"], ["x", "y", "x", "z"], queries, answers)
    # The text "a" has two positives: neither stands in the other's way.
    assert [each.rank for each in found] == [1, 1, 1, 1]
    assert [each.nearest for each in found] == [0, 1, 0, 0]
    assert [each.rank for each in retrieved(["a", "b", "c", "d"], ["x", "y", "x", "z"], queries, answers)][-1] == 2


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_model_whose_vectors_tell_nothing_apart_finds_nothing(value: float) -> None:
    same = np.full((5, 4), value, dtype=np.float32)
    found = retrieved(list("abcde"), list("vwxyz"), same, same)
    assert {each.rank for each in found} == {5}


def test_only_the_first_numbers_count_where_a_width_is_given() -> None:
    queries = np.array([[1, 0, 5], [0, 1, 0]], dtype=np.float32)
    answers = np.array([[1, 0, 0], [0.5, 0.5, 5]], dtype=np.float32)
    assert [each.rank for each in retrieved(["a", "b"], ["x", "y"], queries, answers)] == [2, 1]
    assert [each.rank for each in retrieved(["a", "b"], ["x", "y"], queries, answers, width=2)] == [1, 1]


def test_vectors_survive_their_text() -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    assert (unpacked([packed(row) for row in vectors]) == vectors).all()


def test_the_parity_of_vectors_is_their_cosine_and_a_turned_one_is_reported() -> None:
    tuned = np.eye(4, dtype=np.float32)
    near = np.array([[0.6, 0.8, 0, 0], *np.eye(4)[1:]], dtype=np.float32)
    assert vector_parity(tuned, {"fp32": tuned, "int8": near}).warnings == ()
    found = vector_parity(tuned, {"fp32": near})
    assert found.of == {"fp32": pytest.approx(0.9)}
    assert "0.6000" in found.warnings[0]


def test_probes_of_vectors_are_compared_by_direction() -> None:
    vector = np.random.default_rng(0).normal(size=64).tolist()
    near = [value + 0.01 for value in vector]
    other = np.random.default_rng(1).normal(size=64).tolist()
    asked = Probes(("a", "b", "c", "d"), (vector_answer(vector),) * 3 + ("vector label",))
    differ = asked.differences([vector_answer(near), vector_answer(other), "an error", "vector label"])
    assert [text for text, *_ in differ] == ["b", "c"]


def _message(**changes: Any) -> run_pb2.TrainingSpec:
    spec = run_pb2.TrainingSpec(
        base_model="b",
        model_name="m",
        text_embedding=run_pb2.TextEmbeddingTask(positive_field="title", max_input_tokens=32, dimensions=[64, 16]),
        full=run_pb2.FullMethod(),
        optimization=run_pb2.Optimization(max_steps=2, batch_size=4, learning_rate=0.01),
        compression=run_pb2.Compression(variants=["fp32", "int8"]),
    )
    spec.MergeFrom(run_pb2.TrainingSpec(**changes))
    return spec


def test_defaults_and_columns_come_from_the_message() -> None:
    spec = spec_from(_message())
    assert spec.task == TextEmbeddingTask("title", 32, "", 0.05, (16, 64))
    assert spec_from(spec_to(spec)) == spec
    assert TrainingSpec.from_json(spec.to_json(), lambda *_: Full()) == spec
    assert [column for column, _ in spec.learnt] == ["title"]
    hard = spec_from(_message(text_embedding=run_pb2.TextEmbeddingTask(negative_field="wrong")))
    assert hard.learnt == [
        ("title", "spec.text_embedding.positive_field"),
        ("wrong", "spec.text_embedding.negative_field"),
    ]


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"optimization": Optimization(max_steps=2, batch_size=1)}, "spec.optimization.batch_size", "2 or more"),
        ({"variants": ("int4",)}, "spec.compression.variants", "choose from fp32, int8"),
        ({"students": (Student(layers=1),)}, "spec.compression.students", "text_embedding has none"),
        ({"strategy": "ddp", "processes": 2}, "spec.strategy", "text_embedding does not work with ddp"),
        ({"task": TextEmbeddingTask("text")}, "spec.text_embedding.positive_field", "another column than text"),
        (
            {"task": TextEmbeddingTask("a", 32, "text")},
            "spec.text_embedding.negative_field",
            "another column than text",
        ),
        ({"task": TextEmbeddingTask("a", 32, "a")}, "spec.text_embedding.negative_field", "than positive_field"),
    ],
)
def test_what_a_run_cannot_do_is_refused_with_the_field(changes: dict[str, Any], field: str, message: str) -> None:
    valid: dict[str, Any] = {"task": TextEmbeddingTask("title"), "optimization": Optimization(max_steps=2)}
    with pytest.raises(InvalidArgumentError) as refused:
        TrainingSpec("m", "b", "d", "", "0" * 64, method=Full(), **{**valid, **changes})
    assert [each.field for each in refused.value.violations] == [field]
    assert message in refused.value.violations[0].description


def test_a_width_that_the_base_model_does_not_have_is_refused() -> None:
    task = TextEmbeddingTask("title", dimensions=(64, 384))
    spec = TrainingSpec("m", "b", "d", "", "0" * 64, task, Full(), Optimization(max_steps=2))
    with pytest.raises(InvalidArgumentError, match=r"spec\.text_embedding\.dimensions: 384 is not below 384"):
        spec.check_base(BaseModel("b", "1", "encoder", 512, "bert", width=384))
    spec.check_base(BaseModel("b", "1", "encoder", 512, "bert", width=768))


def test_its_kind_is_its_name() -> None:
    assert TASKS["text_embedding"] is TextEmbeddingTask
