"""Prompt tuning: the same computation as PEFT's, and its vectors survive merging, storing and the chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.kit.errors import InvalidArgumentError
from services.training.domain.tasks import GenerationTask, TextClassificationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.methods.prompt_tuning import PromptTuning
from services.training.engine.prompts import prompts_of
from services.training.engine.virtual_tokens import add_rows, token_name, virtual_ids, write_tokenizer
from tests.models import make_language_model

_TASK = GenerationTask("Say it.\n\n{text}", "answer", max_input_tokens=96, max_target_tokens=8)
_COUNT = 5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language_model(tmp_path_factory.mktemp("models") / "llama", ["the room was good and the staff kind"])


def load(folder: Path) -> Any:
    made: Any = AutoModelForCausalLM
    return made.from_pretrained(str(folder), dtype=torch.float32).eval()


def adapted(base: Path, folder: Path) -> tuple[Any, list[int]]:
    """A model whose vectors were moved far away, as training may do, and their ids."""
    write_tokenizer(base, folder, _COUNT)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    ids = virtual_ids(tokenizer, _COUNT)
    model = load(base)
    add_rows(model, ids, tokenizer.encode("Say it.", add_special_tokens=False))
    found: Any = PromptTuning(_COUNT).adapt(model)
    trained = [weight for weight in found.parameters() if weight.requires_grad]
    assert [tuple(weight.shape) for weight in trained] == [(_COUNT, model.config.hidden_size)]
    with torch.no_grad():
        trained[0].normal_(0.0, 3.0, generator=torch.Generator().manual_seed(3))
    return found, ids


def test_it_computes_what_peft_computes_with_vectors_beside_the_model(base: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    ours, ids = adapted(base, tmp_path / "tuned")
    text = torch.tensor([[7, 20, 31, 44]])
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=_COUNT)
    theirs: Any = get_peft_model(load(base), config)
    vectors = ours.get_base_model().get_input_embeddings()(torch.tensor(ids)).detach()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(vectors)
        expected = theirs(input_ids=text).logits[:, -text.shape[1] :]
        found = ours(input_ids=torch.cat([torch.tensor([ids]), text], dim=1)).logits[:, _COUNT:]
    assert torch.allclose(found[..., : expected.shape[-1]], expected, atol=1e-4)


def test_what_was_learnt_is_in_the_stored_model_and_in_every_prompt(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    model, ids = adapted(base, folder)
    prompt = prompts_of(folder, _TASK).of_text("the room was good")
    assert prompt == [*ids, *prompts_of(base, _TASK).of_text("the room was good")]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([prompt])).logits
    merged = PromptTuning(_COUNT).merge(model)
    merged.save_pretrained(str(folder))  # type: ignore[operator]
    with torch.no_grad():
        found = load(folder)(input_ids=torch.tensor([prompt])).logits
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_a_virtual_token_is_never_an_answer(base: Path, tied: bool) -> None:
    model = load(base)
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    count = model.config.vocab_size
    before = model(input_ids=torch.tensor([[7, 20, 31]])).logits
    found: Any = PromptTuning(_COUNT).adapt(model)
    with torch.no_grad():
        for weight in found.parameters():
            if weight.requires_grad:
                weight.normal_(0.0, 100.0)
        after = found(input_ids=torch.tensor([[7, 20, 31]])).logits
    assert torch.allclose(after[..., :count], before, atol=1e-5)
    assert bool((after.argmax(-1) < count).all())
    assert float(after.softmax(-1)[..., count:].max()) <= 1 / count


def test_a_model_without_a_chat_template_gets_one_that_says_the_same(base: Path, tmp_path: Path) -> None:
    plain, folder = tmp_path / "plain", tmp_path / "tuned"
    tokenizer: Any = AutoTokenizer.from_pretrained(str(base))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(str(plain))
    load(base).save_pretrained(str(plain))
    assert not (plain / "chat_template.jinja").exists()
    write_tokenizer(plain, folder, _COUNT)
    ids = virtual_ids(AutoTokenizer.from_pretrained(str(folder)), _COUNT)
    assert prompts_of(folder, _TASK).of_text("the room") == [*ids, *prompts_of(plain, _TASK).of_text("the room")]


def test_the_result_of_prompt_tuning_is_not_tuned_so_again(base: Path, tmp_path: Path) -> None:
    write_tokenizer(base, tmp_path / "once", _COUNT)
    load(base).save_pretrained(str(tmp_path / "once"))
    with pytest.raises(InvalidArgumentError, match=r"spec\.prompt_tuning: once already has the token") as refused:
        write_tokenizer(tmp_path / "once", tmp_path / "twice", _COUNT)
    assert token_name(0) in refused.value.message


def test_a_classifier_has_no_prompt_to_tune() -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        TrainingSpec(
            "m", "b", "d", "", "0" * 64, TextClassificationTask("label"), PromptTuning(), Optimization(max_steps=2)
        )
    assert [violation.field for violation in refused.value.violations] == ["spec.prompt_tuning"]
