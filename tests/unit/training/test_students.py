"""Students: what is pruned from a tuned encoder, that the rest computes as before, and that it learns the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from services.training.domain.students import FAMILIES, Student
from services.training.domain.training_spec import Optimization
from services.training.engine.classifier import build_classifier
from services.training.engine.distillation import DistillationObjective, outputs
from services.training.engine.loop import Outcome, train
from services.training.engine.students import groups_of, kept_tokens, make_student
from services.training.engine.tasks import pad_right

_VOCABULARY, _LABELS = 40, 3
_UNKNOWN, _SPECIAL = 1, [1, 0, 2, 3]
_MODELS: dict[str, tuple[Any, Any]] = {
    "bert": (BertConfig, BertModel),
    "camembert": (CamembertConfig, CamembertModel),
    "electra": (ElectraConfig, ElectraModel),
    "roberta": (RobertaConfig, RobertaModel),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel),
}
# Every token is in them.
_TEXTS = [[2, *(4 + (7 * at + step * at % 5 + step) % (_VOCABULARY - 4) for step in range(3 + at % 6)), 3]
          for at in range(96)]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of two threads differ in the last bit from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _teacher(family: str = "bert", *, each_token: bool = False) -> Any:
    make_config, make_model = _MODELS[family]
    config = make_config(
        vocab_size=_VOCABULARY,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        # As far from nothing as trained weights are.
        initializer_range=0.3,
    )
    assert config.model_type == family
    torch.manual_seed(3)
    model = build_classifier(make_model(config), 32, _LABELS, seed=0, each_token=each_token)
    with torch.no_grad():
        model.get_parameter("head.weight").mul_(20)
    return model.eval()


def _student(teacher: Any, **kept: Any) -> Any:
    return make_student(teacher, Student(**kept), _TEXTS, pad=0, kept=_SPECIAL).eval()


def _logits(model: Any, texts: list[list[int]] | None = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(*pad_right(texts or _TEXTS[:32], 0))
    return found


def _healed(teacher: Any, student: Any, layers: int, steps: int) -> Outcome:
    ends = [group[-1] for group in groups_of(4, layers)]
    objective = DistillationObjective(teacher, _TEXTS, 0, ends, 2.0)
    options = Optimization(max_steps=steps, batch_size=16, learning_rate=5e-3)
    return train(student, objective, options, device=torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shapes_of_a_student_are_those_of_its_configuration(family: str) -> None:
    teacher = _teacher(family)
    before = {name: tuple(each.shape) for name, each in teacher.named_parameters()}
    student = _student(teacher, layers=2, feed_forward=0.25, heads=3, vocabulary=20)
    config = student.encoder.config
    assert (config.num_hidden_layers, config.intermediate_size, config.num_attention_heads) == (2, 16, 3)
    assert len(student.encoder.encoder.layer) == 2
    for block in student.encoder.encoder.layer:
        assert block.intermediate.dense.weight.shape == (16, 32)
        assert block.output.dense.weight.shape == (32, 16)
        assert block.attention.self.value.weight.shape == (24, 32)
        assert block.attention.output.dense.weight.shape == (32, 24)
    assert student.encoder.get_input_embeddings().weight.shape[0] == 20
    assert _logits(student).shape == (32, _LABELS)
    # The teacher is as it was.
    assert {name: tuple(each.shape) for name, each in teacher.named_parameters()} == before
    assert teacher.encoder.config.num_hidden_layers == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_keeps_everything_answers_exactly_as_its_teacher(family: str) -> None:
    teacher = _teacher(family)
    # 0.999 of 64 neurons are 64: they are chosen, and copied in their order.
    student = _student(teacher, layers=4, feed_forward=0.999, heads=4, vocabulary=_VOCABULARY)
    assert torch.equal(_logits(student), _logits(teacher))


def test_neurons_and_heads_that_say_nothing_go_first() -> None:
    teacher = _teacher()
    with torch.no_grad():
        for number, block in enumerate(teacher.encoder.encoder.layer):
            block.output.dense.weight[:, number % 2 :: 2] = 0
            # Head `number` of the block: it has eight columns.
            block.attention.output.dense.weight[:, 8 * number : 8 * number + 8] = 0
    student = _student(teacher, feed_forward=0.5, heads=3)
    torch.testing.assert_close(_logits(student), _logits(teacher), rtol=1e-4, atol=1e-4)


def test_tokens_that_lose_their_embedding_are_read_as_the_unknown_one() -> None:
    teacher = _teacher()
    texts = [[2, 5, 5, 6, 3], [2, 5, 7, 6, 3]]
    assert kept_tokens(texts, 6, _SPECIAL) == [1, 0, 2, 3, 5, 6]
    # Those that every tokenizer needs stay in any case.
    assert kept_tokens(texts, 1, _SPECIAL) == _SPECIAL
    student = make_student(teacher, Student(vocabulary=6), texts, pad=0, kept=_SPECIAL).eval()
    read = _logits(teacher, [[2, 5, _UNKNOWN, 6, 3]])
    assert torch.equal(_logits(student, [[2, 5, 7, 6, 3]]), read)
    assert torch.equal(_logits(student, [[2, 5, 30, 6, 3]]), read)
    assert torch.equal(_logits(student, [[2, 5, 6, 3]]), _logits(teacher, [[2, 5, 6, 3]]))


def test_layers_are_parted_into_groups_that_end_with_the_last_one() -> None:
    assert groups_of(4, 4) == [range(1), range(1, 2), range(2, 3), range(3, 4)]
    assert groups_of(4, 1) == [range(4)]
    for layers in range(1, 13):
        for kept in range(1, layers + 1):
            assert [at for group in groups_of(layers, kept) for at in group] == list(range(layers))


def test_a_student_of_all_layers_has_nothing_to_learn() -> None:
    teacher = _teacher()
    objective = DistillationObjective(teacher, _TEXTS, 0, [0, 1, 2, 3], 2.0)
    loss, tokens = objective.loss(_student(teacher, layers=4), range(8), torch.device("cpu"))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert tokens == sum(map(len, _TEXTS[:8]))


@pytest.mark.parametrize("each_token", [False, True])
def test_a_pruned_student_learns_to_answer_as_its_teacher(each_token: bool) -> None:
    teacher = _teacher(each_token=each_token)
    student = _student(teacher, layers=2, feed_forward=0.5, heads=2)
    _, mask = pad_right(_TEXTS[:32], 0)
    real = mask.bool() if each_token else torch.ones(32, dtype=torch.bool)

    def agreement() -> float:
        same = _logits(student).argmax(-1) == _logits(teacher).argmax(-1)
        return float(same[real].float().mean())

    before, wanted = agreement(), _logits(teacher)
    frozen = student.encoder.get_input_embeddings().weight.clone()
    outcome = _healed(teacher, student, 2, 250)
    assert outcome.losses[-1] < outcome.losses[0] / 4
    assert agreement() > max(0.75, before + 0.25)
    # What it learns from stays, and so do the embeddings.
    assert torch.equal(_logits(teacher), wanted)
    assert torch.equal(student.encoder.get_input_embeddings().weight, frozen)


def test_filling_tokens_are_not_learnt() -> None:
    teacher = _teacher(each_token=True)
    student = _student(teacher, layers=1)
    alone = DistillationObjective(teacher, [_TEXTS[0]], 0, [3], 2.0).loss(student, [0], torch.device("cpu"))[0]
    longest = max(_TEXTS, key=len)
    both = DistillationObjective(teacher, [_TEXTS[0], longest], 0, [3], 2.0)
    ids, mask = pad_right([_TEXTS[0], longest], 0)
    assert mask.sum() < mask.numel()
    with torch.no_grad():
        states = outputs(teacher, ids, mask)[1][-1]
    # The teacher's own states of real tokens do not depend on the filling, so neither does what is learnt.
    torch.testing.assert_close(states[0, : len(_TEXTS[0])], outputs(teacher, *pad_right([_TEXTS[0]], 0))[1][-1][0])
    assert both.loss(student, [0], torch.device("cpu"))[0].item() == pytest.approx(alone.item(), rel=1e-4)


def test_equal_seeds_give_equal_students() -> None:
    def learnt() -> Tensor:
        teacher = _teacher()
        student = _student(teacher, layers=2, feed_forward=0.5)
        _healed(teacher, student, 2, 5)
        return _logits(student)

    assert torch.equal(learnt(), learnt())
