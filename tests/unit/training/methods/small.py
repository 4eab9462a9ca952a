"""A causal language model of one layer, made in a moment."""

from __future__ import annotations

from typing import Any


def small_writer() -> Any:
    """A Llama with 64 tokens and random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model: Any = LlamaForCausalLM(config)
    return model.eval()
