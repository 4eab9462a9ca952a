"""The memory plan: its parameters are a model's own, and its parts add up as the strategies say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from services.training.engine.memory_plan import Batch, devices_needed, plan_memory
from services.training.engine.model_shape import SHAPES, Shape

_BATCH = Batch(1, 2048, 2048)
_GIB = 2**30


@pytest.mark.parametrize("tied", [False, True])
def test_the_parameters_are_those_of_the_model(tied: bool) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=512, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, tie_word_embeddings=tied,
            )
        )  # fmt: skip
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    assert Shape.of_config(config).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "published"), [("7B", 6.738e9), ("70B", 68.977e9), ("123B", 122.61e9), ("405B", 405.85e9)]
)
def test_the_known_sizes_are_the_published_ones(name: str, published: float) -> None:
    assert SHAPES[name].parameters == pytest.approx(published, rel=0.002)


def test_fsdp_shares_what_ddp_copies() -> None:
    shape = SHAPES["7B"]
    count = shape.parameters
    one = plan_memory(shape, _BATCH, trainable=count)
    assert (one.weights, one.gradients, one.optimizer) == (4 * count, 4 * count, 8 * count)
    copied = plan_memory(shape, _BATCH, trainable=count, strategy="ddp", devices=8)
    shared = plan_memory(shape, _BATCH, trainable=count, strategy="fsdp", devices=8)
    assert copied.weights == one.weights
    assert copied.peak > one.peak
    assert shared.weights == pytest.approx(one.weights / 8, rel=0.001)
    assert shared.optimizer == pytest.approx(one.optimizer / 8, rel=0.001)
    assert shared.activations == one.activations


def test_tensor_parallel_shares_the_layers_and_what_they_keep() -> None:
    shape = SHAPES["7B"]
    one = plan_memory(shape, _BATCH, trainable=shape.parameters)
    tp = plan_memory(shape, _BATCH, trainable=shape.parameters, strategy="tp", devices=8)
    outside = shape.parameters - shape.linear_weights
    kept = outside + shape.linear_weights / 8
    assert tp.weights == pytest.approx(4 * kept, rel=1e-6)
    assert tp.optimizer == pytest.approx(8 * kept, rel=1e-6)
    # Norms and logits are whole everywhere.
    assert one.activations / 8 < tp.activations < one.activations / 2
    lora, split = (
        plan_memory(shape, _BATCH, trainable=20_000_000, strategy=strategy, devices=8) for strategy in ("single", "tp")
    )
    assert split.optimizer == lora.optimizer
    assert split.peak < 0.4 * lora.peak


def test_adapters_need_neither_gradients_nor_moments_of_the_frozen_weights() -> None:
    shape = SHAPES["7B"]
    full = plan_memory(shape, _BATCH, trainable=shape.parameters)
    lora = plan_memory(shape, _BATCH, trainable=20_000_000)
    assert lora.optimizer + lora.gradients < 0.01 * (full.optimizer + full.gradients)
    assert lora.weights == full.weights


def test_more_devices_are_asked_for_larger_models() -> None:
    needed = [
        devices_needed(shape, _BATCH, trainable=shape.parameters, half=True, device_bytes=80 * _GIB, checkpointing=True)
        for shape in SHAPES.values()
    ]
    assert all(count is not None for count in needed)
    assert needed == sorted(needed, key=lambda count: count or 0)
    assert needed[0] is not None
    assert needed[0] > 1, "7B weights, gradients and moments in 32 bits alone are 108 GB"
    # No number of devices makes room for the activations of one device: 70B keeps more than 80 GiB of them.
    seventy = SHAPES["70B"]
    assert devices_needed(seventy, _BATCH, trainable=seventy.parameters, half=True, device_bytes=80 * _GIB) is None
    assert devices_needed(SHAPES["7B"], Batch(64, 8192, 8192), trainable=1, half=True, device_bytes=_GIB) is None
