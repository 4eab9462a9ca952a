"""Estimates the memory that a training needs from the model's shape, before anything starts.

The estimate adds up what `services.training.engine.loop` keeps in memory, for decoders of Llama's kind (Qwen, SmolLM)
and encoders of BERT's. `docs/benchmarks.md` compares it with measured peaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from services.training.domain.strategies import Strategy
from services.training.engine.model_shape import Shape

_FLOAT, _HALF = 4, 2
_MOMENTS = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """One device's batch: `examples` texts of `tokens` tokens each, of which `targets` are learnt."""

    examples: int
    tokens: int
    targets: int

    def share(self, devices: int) -> Batch:
        """The largest of the devices' shares of this batch; at least one text."""
        return replace(self, examples=math.ceil(self.examples / devices))


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on one device; `peak` is the maximum over time."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def plan_memory(
    shape: Shape,
    batch: Batch,
    *,
    trainable: int,
    half: bool = False,
    strategy: Strategy = "single",
    devices: int = 1,
    eager_attention: bool = False,
    checkpointing: bool = False,
    frozen_blocks: bool = False,
    fused: bool = False,
) -> MemoryPlan:
    """The memory of one device.

    Args:
        shape: the model.
        batch: one device's batch.
        trainable: number of trained weights; all of them for full fine-tuning.
        half: whether linear layers compute in 16 bits; weights stay in 32.
        strategy: ddp keeps a whole copy on each device, fsdp a share of weights, gradients and moments, tp the same of
            the layers, and of what they keep.
        devices: number of devices.
        eager_attention: whether the whole score matrix is kept, as for short texts on a CPU, and in fp32 if no fused
            kernel supports the model.
        checkpointing: whether only the input of each block is kept and the rest is computed again.
        frozen_blocks: whether no weight of the blocks is trained, so that no layer keeps its input for one.
        fused: whether norms and feed-forward layers are those of `services.training.engine.fused`.
    """
    share = devices if strategy == "fsdp" else 1
    split = devices if strategy == "tp" else 1
    # tp has everything outside of the layers whole on each device; so it has adapters' narrow sides, which are small.
    parted = shape.linear_weights / split
    weights = math.ceil((shape.parameters - shape.linear_weights + parted) / share) * _FLOAT
    extra = max(0, trainable - shape.parameters) * _FLOAT
    learnt = trainable - (shape.linear_weights - parted if trainable >= shape.parameters else 0)
    moved = math.ceil(learnt / share) * _FLOAT
    optimizer = _MOMENTS * moved
    # fsdp has 16-bit copies of one block at a time only.
    copied = shape.layers if share == 1 else 1
    copied_head = shape.vocabulary * shape.hidden * _HALF if half and trainable >= shape.parameters else 0
    activations = copied_head + _activations(
        shape,
        batch,
        half=half,
        eager=eager_attention,
        copied=copied,
        checkpointing=checkpointing,
        frozen=frozen_blocks,
        fused=fused,
        split=split,
    )
    # fsdp gathers one block at a time.
    gathered = math.ceil(shape.linear_weights / max(1, shape.layers)) * _FLOAT if share > 1 else 0
    # The backward pass frees activations while it creates gradients, so it never has all of both.
    reading = weights + optimizer + activations + gathered
    # The optimizer computes the square root of all second moments at once.
    stepping = weights + optimizer + moved + moved
    # ddp has buckets in addition to the gradients.
    buckets = moved if strategy == "ddp" and devices > 1 else 0
    return MemoryPlan(
        weights + extra, moved + buckets, optimizer, activations, max(reading, stepping) + buckets + extra
    )


def _activations(
    shape: Shape,
    batch: Batch,
    *,
    half: bool,
    eager: bool,
    copied: int,
    checkpointing: bool,
    frozen: bool,
    fused: bool,
    split: int,
) -> int:
    """Bytes that the forward pass keeps for the backward pass."""
    tokens, narrow = batch.examples * batch.tokens, _HALF if half else _FLOAT
    if shape.encoder:
        per_token = _of_encoder(shape, batch, narrow, eager)
    else:
        per_token = _of_decoder(shape, batch, half, eager, frozen, fused, split)
    block = tokens * per_token
    blocks = shape.layers * tokens * shape.hidden * _FLOAT + block if checkpointing else shape.layers * block
    if shape.encoder:
        # Sum of the embeddings, their norm, and its noise.
        blocks += tokens * shape.hidden * 3 * _FLOAT
    # 16-bit copies of the weights exist for the duration of the pass.
    copies = shape.linear_weights // split // shape.layers * copied * _HALF if half else 0
    # Logits of the learnt positions: as computed, in 32 bits, as log-probabilities, and their gradient.
    targets = 0 if shape.encoder else batch.examples * batch.targets
    logits = targets * shape.vocabulary * (3 * _FLOAT + (narrow if half else 0))
    return blocks + copies + logits


def _of_decoder(shape: Shape, batch: Batch, half: bool, eager: bool, frozen: bool, fused: bool, split: int) -> int:
    """Bytes of a token in a block of Llama's kind."""
    narrow = _HALF if half else _FLOAT
    # Two norms, in 32 bits: input, normalised values, result; in mixed precision the result is also kept in 16.
    norms = 2 * shape.hidden * (3 * _FLOAT + (_HALF if half else 0))
    # Rotated queries and keys, values, what attention gives, and its copy for the next layer.
    attention = (3 * shape.queries + 2 * shape.key_width) * narrow
    # Gate, its activation, the other projection, their product.
    feed_forward = 4 * shape.feed_forward * narrow
    scores = shape.heads * batch.tokens * (2 * _FLOAT) if eager else 0
    if frozen:
        # Of the norms the input; queries, keys and values; all of the gate but the product.
        norms = 2 * shape.hidden * _FLOAT
        attention = (2 * shape.queries + 2 * shape.key_width) * narrow
        feed_forward = 3 * shape.feed_forward * narrow
    if fused:
        # Normalised values and the activation of the gate are computed again.
        feed_forward -= shape.feed_forward * narrow
        norms -= 0 if frozen else 2 * shape.hidden * _FLOAT
    # Norms are whole on each device, heads and units are not.
    return norms + (attention + feed_forward + scores) // split


def _of_encoder(shape: Shape, batch: Batch, narrow: int, eager: bool) -> int:
    """Bytes of a token in a block of BERT's kind; the noise of dropout is in 32 bits, as on a processor."""
    mask = _FLOAT if shape.dropout else 0
    norms = 2 * shape.hidden * (2 * _FLOAT + mask)
    attention = 4 * shape.hidden * narrow
    feed_forward = 2 * shape.feed_forward * narrow
    # Probabilities; behind dropout they are kept twice.
    scores = shape.heads * batch.tokens * (2 * _FLOAT + mask) if eager else 0
    return norms + attention + feed_forward + scores


def devices_needed(
    shape: Shape,
    batch: Batch,
    *,
    trainable: int,
    half: bool,
    device_bytes: int,
    checkpointing: bool = False,
    limit: int = 4096,
) -> int | None:
    """The smallest number of devices, a power of two, on which the training fits with fsdp; None if `limit` is too few.

    One device is used without fsdp; several share the `batch`.
    """
    count = 1
    while count <= limit:
        strategy: Strategy = "single" if count == 1 else "fsdp"
        plan = plan_memory(
            shape,
            batch.share(count),
            trainable=trainable,
            half=half,
            strategy=strategy,
            devices=count,
            checkpointing=checkpointing,
        )
        if plan.peak <= device_bytes:
            return count
        count *= 2
    return None
