"""Layers in fewer passes over memory compute what the layers' own code does, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from services.training.engine.fused import FusedLayers

_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "attention_bias": True,
}
IDS = torch.arange(30).reshape(2, 15)


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**_SIZES))


def qwen() -> nn.Module:
    return Qwen3ForCausalLM(Qwen3Config(**_SIZES))


def gemma() -> nn.Module:
    return GemmaForCausalLM(GemmaConfig(**_SIZES, hidden_act="gelu_pytorch_tanh"))


def bert() -> nn.Module:
    return BertModel(BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))  # fmt: skip


def adapted(model: nn.Module, **options: Any) -> Any:
    """With adapters that change something already."""
    found: Any = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", **options))
    torch.manual_seed(1)
    for name, weight in found.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return found


def gradients(model: Any, layers: FusedLayers | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What the model gives for some texts, and the gradients of its trainable weights."""
    model.train()
    model.zero_grad()

    def run() -> torch.Tensor:
        found: torch.Tensor = model(input_ids=IDS)[0]
        return found

    if layers is None:
        values = run()
    else:
        with layers:
            values = run()
    (values * torch.linspace(-1, 1, values.numel()).reshape(values.shape)).sum().backward()  # type: ignore[no-untyped-call]
    return values.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(model: Any, layers: FusedLayers) -> None:
    own_values, own = gradients(model, None)
    values, found = gradients(model, layers)
    assert own.keys() == found.keys()
    torch.testing.assert_close(values, own_values, rtol=1e-4, atol=1e-5)
    for name, value in own.items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-4), name


def changed(model: Any, layers: FusedLayers) -> set[str]:
    """The kinds of layers that are computed otherwise."""
    with layers:
        return {type(module).__name__ for module in model.modules() if "forward" in vars(module)}


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (llama, {"LlamaRMSNorm", "LlamaMLP"}),
        (qwen, {"Qwen3RMSNorm", "Qwen3MLP"}),
        # Its norms multiply by 1 + weight, and its activation is another.
        (gemma, set()),
        (bert, set()),
    ],
)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_values_and_gradients_are_those_of_the_layers_own_code(
    make: Callable[[], nn.Module], kinds: set[str], method: str
) -> None:
    torch.manual_seed(0)
    model: Any = make() if method == "full" else adapted(make())
    for weight in model.parameters():
        if weight.ndim == 1:
            nn.init.normal_(weight, mean=1.0, std=0.2)
    layers = FusedLayers(model)
    assert changed(model, layers) == kinds | ({"Linear"} if method == "lora" else set())
    assert_equal(model, layers)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}])
def test_an_adapter_that_does_more_is_left_to_its_own_code(options: dict[str, Any]) -> None:
    model = adapted(llama(), **options)
    assert "Linear" not in changed(model, FusedLayers(model))


def test_the_model_answers_as_it_was_while_its_adapters_are_disabled() -> None:
    torch.manual_seed(0)
    model = adapted(llama())
    with torch.no_grad(), FusedLayers(model):
        learnt = model(input_ids=IDS)[0]
        with model.disable_adapter():
            before = model(input_ids=IDS)[0]
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(before, model(input_ids=IDS)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(learnt, before, atol=1e-2)


def test_rs_lora_scales_by_its_own_rule() -> None:
    torch.manual_seed(0)
    model = adapted(llama(), use_rslora=True)
    layers = FusedLayers(model)
    assert "Linear" in changed(model, layers)
    assert_equal(model, layers)
