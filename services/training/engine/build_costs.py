"""What a build of a model takes when it serves, from the model's shape: size, memory, and the work of a pass.

Constants were measured on builds of the runtime; `docs/benchmarks.md` compares the predictions with builds of other
shapes. It knows no device: `services.training.domain.device` turns work into time.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from services.training.domain.device import Pass, Speed
from services.training.domain.tasks import VariantName
from services.training.engine.model_shape import Shape

_MB = 10**6
# Weights in 8 bits have a scale and a zero point for each output; in 4 bits for each 64 of them, and a fifth of them
# stays in 8 bits (services/training/adapters/language_builds.py).
_GROUP, _WIDE_SHARE = 64, 0.2
_INT4 = 0.5 + (2 + 0.5) / _GROUP
_OF_OUTPUT, _FLOAT = 3, 4
# The graph itself, by block: more where weights are widened on the way.
_GRAPH = {"fp32": 40_000, "int8": 75_000, "int4": 85_000}
# Tokenizers: an encoder's once, a writer's also in the form that the engine reads.
_TOKENIZER = {True: 25, False: 95}
# Runtime and libraries in the process that serves, and copies of the weights in the order of the processor's products.
_RUNTIME_BYTES = {True: 108 * _MB, False: 140 * _MB}
_COPIES = {True: {"fp32": 1.95, "int8": 1.95}, False: {"fp32": 2.25, "int8": 2.75, "int4": 2.75}}
_LINEAR = {"fp32": 4.0, "int8": 1.0, "int4": (1 - _WIDE_SHARE) * _INT4 + _WIDE_SHARE}
_TABLE = {"fp32": 4.0, "int8": 1.0, "int4": 1.0}


def linear_bytes(shape: Shape, variant: VariantName) -> float:
    """Bytes of the blocks' products."""
    return shape.linear_weights * _LINEAR[variant]


def file_bytes(shape: Shape, variant: VariantName) -> float:
    """Size of the build's folder, with its tokenizer."""
    table = shape.vocabulary * shape.hidden * (1 if shape.encoder or shape.tied else 2)
    table += shape.positions * shape.hidden
    # Norms and biases stay in 32 bits.
    vectors = shape.layers * (9 * shape.hidden + shape.feed_forward if shape.encoder else 2 * shape.hidden)
    scales = 0.0
    if variant != "fp32":
        outputs = shape.layers * sum(each.after for each in shape.linears) + table / shape.hidden
        scales = outputs * _OF_OUTPUT
    weights = linear_bytes(shape, variant) + table * _TABLE[variant] + vectors * _FLOAT + scales
    return weights + shape.layers * _GRAPH[variant] + shape.vocabulary * _TOKENIZER[shape.encoder]


def serving_bytes(shape: Shape, variant: VariantName, tokens: int) -> float:
    """Peak memory of the process that serves the build and reads texts of `tokens` tokens, one at a time."""
    # Values of one block at a time, and of a writer's cache, keys and values in 8 bits.
    values = _FLOAT * tokens * (8 * shape.hidden + 2 * shape.feed_forward + shape.heads * tokens)
    cache = 0 if shape.encoder else 2 * shape.layers * shape.key_width * tokens
    copies = _COPIES[shape.encoder][variant] * file_bytes(shape, variant)
    # The runtime looks words up in 32 bits, so an encoder's table is widened when it is loaded.
    widened = shape.vocabulary * shape.hidden * _FLOAT if shape.encoder and variant != "fp32" else 0
    return _RUNTIME_BYTES[shape.encoder] + copies + widened + values + cache


def reading(shape: Shape, variant: VariantName, tokens: int, ms: float = 0.0) -> Pass:
    """The pass over a whole text, or over a prompt up to its first answer token; `ms` if it was measured."""
    head = 0 if shape.encoder else shape.vocabulary * shape.hidden
    return _pass(shape, variant, tokens, tokens, head, ms)


def writing(shape: Shape, variant: VariantName, past: int, ms: float = 0.0) -> Pass:
    """The pass for one more token of an answer behind `past` tokens."""
    return _pass(shape, variant, 1, past, shape.vocabulary * shape.hidden, ms)


def _pass(shape: Shape, variant: VariantName, tokens: int, past: int, head: int, ms: float) -> Pass:
    # Scores and their sums: each token with each one before it.
    attention = 4 * tokens * past * shape.queries * shape.layers
    flops = 2 * (tokens * shape.linear_weights + head) + attention
    read = linear_bytes(shape, variant) + head * _TABLE[variant]
    moved = shape.layers * tokens * (8 * shape.hidden + 3 * shape.feed_forward + shape.heads * past)
    return Pass(shape.layers, flops, read, moved, ms)


def fit_speed(passes: Sequence[Pass]) -> Speed:
    """The speed that explains measured passes best, by their relative errors; no part of it is negative."""
    import numpy as np
    from scipy.optimize import nnls

    rows = np.array([[p.layers, p.flops / 1e9, p.read_bytes / 1e9, p.moved / 1e9] for p in passes])
    times = np.array([p.ms for p in passes])
    found, _ = nnls(rows / times[:, None], np.ones(len(times)))
    return Speed(*(float(value) for value in found))


def tail_of(samples: Sequence[Sequence[float]]) -> float:
    """Ratio of the 95th percentile to the median, over repeated measurements of several things."""
    ratios = sorted(value / statistics.median(times) for times in samples for value in times)
    return max(1.0, ratios[int(0.95 * (len(ratios) - 1))])
