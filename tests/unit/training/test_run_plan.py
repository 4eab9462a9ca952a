"""The plan of a run: what a method trains, what fits, and what would fit instead."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from services.kit.errors import InvalidArgumentError
from services.training.domain.machine import Machine
from services.training.domain.tasks import GenerationTask, TextClassificationTask, TextEmbeddingTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.low_rank import LowRank
from services.training.engine.methods import make_method, names
from services.training.engine.model_shape import Shape
from services.training.engine.run_plan import plan_run, trained_weights

_SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
}  # fmt: skip


def _model(kind: str) -> Any:
    """A model without weights: all of it is on the meta device."""
    with torch.device("meta"):
        match kind:
            case "llama":
                return LlamaForCausalLM(LlamaConfig(**_SIZES, num_key_value_heads=2, tie_word_embeddings=True))
            case "wide heads":
                return LlamaForCausalLM(LlamaConfig(**_SIZES, head_dim=32, tie_word_embeddings=False))
            case "qwen":
                return Qwen2ForCausalLM(Qwen2Config(**_SIZES, num_key_value_heads=2))
            case _:
                return BertModel(BertConfig(**_SIZES))


def _config(model: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return config


def _spec(method: str = "lora", batch: int = 8, **options: object) -> TrainingSpec:
    return TrainingSpec(
        "m", "base", "d", "", "0" * 64, GenerationTask("{text}", "answer", 128, 24), make_method(method, options),
        Optimization(max_steps=2, batch_size=batch),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "wide heads", "bert"])
def test_the_parameters_are_those_of_a_model_without_weights(kind: str) -> None:
    model = _model(kind)
    assert Shape.of_config(_config(model)).parameters == sum(p.numel() for p in model.parameters())


def test_what_only_some_families_have_is_little() -> None:
    model = _model("qwen")
    counted = sum(p.numel() for p in model.parameters())
    assert Shape.of_config(_config(model)).parameters == pytest.approx(counted, rel=0.005)


@pytest.mark.parametrize("kind", ["llama", "wide heads", "qwen", "bert"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 4, "target_modules": ("q_proj", "v_proj", "query")},
        {"use_dora": True},
        {"target_modules": ("down_proj", "dense")},
    ],
)
def test_adapters_are_counted_as_peft_makes_them(kind: str, options: dict[str, Any]) -> None:
    model = _model(kind)
    spec = _spec(**options)
    shape = Shape.of_config(_config(model))
    adapted = spec.method.adapt(model)
    made = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained_weights(spec, shape) == made


def test_a_classifier_trains_its_head_too() -> None:
    shape = Shape.of_config(_config(_model("bert")))
    classifier = replace(_spec(), task=TextClassificationTask("label"))
    assert trained_weights(classifier, shape) > trained_weights(_spec(), shape)


def test_a_run_that_does_not_fit_names_the_nearest_that_does() -> None:
    config = _config(_model("llama")) | {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 22}
    plan = plan_run(_spec("full", batch=16), config, Machine("cpu", 12 * 10**9))
    assert not plan.chosen.fits
    assert "lora" in plan.nearest, "the moments of all weights alone are too much, whatever the batch"
    smaller = plan_run(_spec("lora", batch=16), config, Machine("cpu", 16 * 10**9))
    assert smaller.chosen.total < plan.chosen.total
    assert plan_run(_spec("lora", batch=1), config, Machine("cpu", 16 * 10**9)).chosen.fits


def test_more_devices_are_needed_for_more_weights_and_fewer_for_adapters() -> None:
    config, gpu = _config(_model("llama")), Machine("cuda", 80 * 10**9, 8, half=True)
    full, lora = (plan_run(_spec(method, batch=1), config, gpu) for method in ("full", "lora"))
    needed = [
        (each.devices or 10**6, other.devices or 10**6) for each, other in zip(full.sizes, lora.sizes, strict=True)
    ]
    assert [name.name for name in full.sizes] == ["7B", "70B", "123B", "405B"]
    assert needed[0][1] == 1, "7B with adapters fits one of 80 GB"
    assert all(of_full >= of_lora for of_full, of_lora in needed)
    assert [each.strategy for each in full.strategies] == ["single", "ddp", "fsdp", "tp"]
    assert [each.devices for each in full.strategies] == [1, 8, 8, 8]


def test_tensor_parallel_is_shown_where_it_works() -> None:
    gpu = Machine("cuda", 80 * 10**9, 8, half=True)
    for method, family, wanted in (("dpo", "llama", False), ("lora", "phi3", False), ("lora", "qwen3", True)):
        options = {"rejected_field": "other"} if method == "dpo" else {}
        config = {**_config(_model("llama")), "model_type": family}
        plan = plan_run(_spec(method, **options, batch=1), config, gpu)
        assert ("tp" in {each.strategy for each in plan.strategies}) == wanted


def test_a_preference_reads_two_answers_of_each_example() -> None:
    config, machine = _config(_model("llama")), Machine("cpu", 16 * 10**9)
    dpo = plan_run(_spec("dpo", rejected_field="other", batch=4), config, machine)
    lora = plan_run(_spec("lora", batch=8), config, machine)
    assert dpo.chosen.memory.activations == lora.chosen.memory.activations


def test_an_embedding_reads_a_text_and_its_positive_and_keeps_two_in_a_batch() -> None:
    config, machine = _config(_model("bert")), Machine("cpu", 16 * 10**9)
    labelled = plan_run(replace(_spec(batch=8), task=TextClassificationTask("label")), config, machine)
    embedding = replace(_spec(batch=4), task=TextEmbeddingTask("title"))
    assert plan_run(embedding, config, machine).chosen.memory.activations == labelled.chosen.memory.activations
    negatives = replace(embedding, task=TextEmbeddingTask("title", negative_field="wrong"))
    more = plan_run(negatives, config, machine).chosen.memory.activations
    assert more > labelled.chosen.memory.activations
    nearest = plan_run(embedding, config, Machine("cpu", 10**6)).nearest
    assert "no smaller batch" in nearest, "a batch of one is not offered"


def test_a_model_of_another_kind_is_refused_with_the_field() -> None:
    with pytest.raises(InvalidArgumentError, match=r"spec\.base_model: its config.json does not describe"):
        plan_run(_spec(), {"model_type": "mamba"}, Machine("cpu", 10**9))


@dataclass(frozen=True, slots=True)
class OfAnotherPackage(LowRank):
    """Adapters under another name."""

    kind: str = "adapters_of_another_package"


class Unplanned:
    """A method of another package that has only what it must have."""

    kind = "unplanned"


@pytest.mark.parametrize("name", [*names(), "adapters_of_another_package"])
def test_every_method_is_planned_by_what_it_trains(name: str) -> None:
    config = _config(_model("llama"))
    spec = _spec() if name not in names() else _spec(name)
    if name not in names():
        spec = replace(spec, method=OfAnotherPackage())
    model = _model("llama")
    adapted = spec.method.adapt(model) if name != "prompt_tuning" else None
    trained = (
        20 * _SIZES["hidden_size"]
        if adapted is None
        else sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    )
    plan = plan_run(spec, config, Machine("cpu", 16 * 10**9))
    assert (plan.trainable, plan.chosen.fits) == (trained, True)


def test_a_method_that_does_not_say_what_it_trains_is_not_planned() -> None:
    spec = replace(_spec(), method=Unplanned())  # type: ignore[arg-type]  # has nothing else
    with pytest.raises(InvalidArgumentError, match="the memory of unplanned cannot be planned"):
        plan_run(spec, _config(_model("llama")), Machine("cpu", 10**9))


def test_processes_share_the_batch_and_on_a_processor_the_memory() -> None:
    config = _config(_model("llama")) | {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 12}
    spec = _spec("full", batch=16)
    two = replace(spec, strategy="ddp", processes=2)
    one = plan_run(spec, config, Machine("cpu", 10**12, cores=4)).chosen
    shared = plan_run(two, config, Machine("cpu", 10**12, cores=4)).chosen
    assert (shared.strategy, shared.devices) == ("ddp", 2)
    assert shared.memory.activations == pytest.approx(one.memory.activations / 2, rel=0.01)
    for memory, fits in ((shared.total * 2, True), (shared.total * 2 - 1, False)):
        assert plan_run(two, config, Machine("cpu", memory, cores=4)).chosen.fits is fits
    assert plan_run(two, config, Machine("cuda", shared.total, 2)).chosen.fits
    assert "strategy" in plan_run(two, config, Machine("cpu", one.total + 1, cores=4)).nearest


def test_processes_share_the_memory_of_a_node_of_a_cluster_only() -> None:
    config = _config(_model("llama"))
    four = replace(_spec("full", batch=16), strategy="ddp", processes=4)
    each = plan_run(four, config, Machine("cpu", 10**12, cores=4)).chosen.total
    for memory, together, fits in ((each, 1, True), (each * 2, 2, True), (each * 2 - 1, 2, False), (each * 4, 8, True)):
        assert plan_run(four, config, Machine("cpu", memory, cores=8, together=together)).chosen.fits is fits
    assert plan_run(four, config, Machine("cuda", each, 8, together=8)).chosen.fits


def test_more_processes_than_the_machine_has_devices_do_not_fit() -> None:
    config, four = _config(_model("llama")), replace(_spec("full"), strategy="ddp", processes=4)
    for machine, nearest in (
        (Machine("cuda", 10**12, 4), ""),
        (Machine("cuda", 10**12, 2), "processes 2"),
        (Machine("cpu", 10**12, cores=3), "processes 3"),
        (Machine("cuda", 10**12, 1), "strategy single"),
    ):
        plan = plan_run(four, config, machine)
        assert plan.chosen.fits is (not nearest)
        assert plan.nearest.startswith(nearest)
