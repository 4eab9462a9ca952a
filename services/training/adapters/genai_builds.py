"""Builds of causal language models for ONNX Runtime GenAI, and their measurement by that runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from services.training.domain.training_spec import VariantName
from services.training.engine.generation import first_line
from services.training.engine.metrics import TextLoss
from services.training.engine.tasks import Pair

logger = logging.getLogger(__name__)

# Rounding to nearest takes 3 s a build. k_quant takes 40 s more: for int8 its loss differs in the fourth digit; int4
# loses 7 % instead of 9 % against the merged SmolLM2-135M, too much to serve in both cases (docs/LOG.md).
# With `last_matmul:int8` and plain rounding the builder writes a graph that does not load, for tied embeddings.
_OPTIONS: dict[VariantName, tuple[str, dict[str, Any]]] = {
    "fp32": ("fp32", {}),
    "int8": ("int8", {"block_size": 32, "accuracy_level": 4}),
    "int4": ("int4", {"block_size": 32, "accuracy_level": 4, "matmul_mixed_precision": "mixed_layers:int8"}),
}
# Only the last position's logits are needed to answer; over a whole prompt they cost more than a layer.
_COMMON = {"prune_lm_head": "true"}


def build(merged: Path, target: Path, variant: VariantName, cache: Path) -> None:
    """Writes the GenAI folder of a merged model.

    Args:
        merged: folder in Hugging Face's layout, fp32.
        target: folder to make.
        variant: which build.
        cache: folder for the builder's temporary files.
    """
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    precision, options = _OPTIONS[variant]
    cache.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    place = ("", str(merged), str(target), precision, "cpu", str(cache))
    given = [f"{key}={value}" for key, value in {**_COMMON, **options}.items()]
    # It prints every layer; what goes wrong it raises.
    with contextlib.redirect_stdout(io.StringIO()):
        # It takes text as its command line does, and loads what create_model needs of the model's configuration.
        create_model(*place, **parse_extra_options(*place, given))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (merged / name).is_file() and not (target / name).is_file():
            shutil.copyfile(merged / name, target / name)


@dataclass(slots=True)
class GenaiMeasurement:
    """What one build answered, and how fast: seconds to the first token, and tokens a second after it.

    `losses` are of the reference answers.
    """

    answers: list[str] = field(default_factory=list)
    losses: list[TextLoss] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    decode_rates: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Median decoding rate of single requests."""
        return statistics.median(self.decode_rates) if self.decode_rates else 0.0

    @property
    def time_to_first_token_ms(self) -> float:
        """Median."""
        return statistics.median(self.first_token_s) * 1000 if self.first_token_s else 0.0


def measure(
    folders: dict[VariantName, Path],
    pairs: Sequence[Pair],
    *,
    max_new_tokens: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[VariantName, GenaiMeasurement]:
    """Lets every build answer every prompt greedily, one request at a time, and takes its loss on the target.

    The builds take turns within each prompt, so that whatever else the machine does hits all of them.
    """
    import onnxruntime_genai as genai

    genai.disable_telemetry_events()
    models = {name: genai.Model(str(folder)) for name, folder in folders.items()}
    tokenizers = {name: genai.Tokenizer(model) for name, model in models.items()}
    found: dict[VariantName, GenaiMeasurement] = {name: GenaiMeasurement() for name in folders}
    warm_up = Pair(pairs[0].prompt[:16], pairs[0].target[:1])
    for model in models.values():
        _answer(genai, model, warm_up, 2)
    for number, pair in enumerate(pairs, start=1):
        for name, model in models.items():
            answer = _answer(genai, model, pair, max_new_tokens)
            measured = found[name]
            measured.answers.append(first_line(tokenizers[name].decode(answer.tokens)))
            measured.losses.append(answer.loss)
            measured.first_token_s.append(answer.first_s)
            if len(answer.tokens) > 1:
                measured.decode_rates.append((len(answer.tokens) - 1) / answer.rest_s)
        on_progress(number)
    return found


@dataclass(frozen=True, slots=True)
class _MeasuredAnswer:
    """Tokens of a greedy answer, seconds to the first and for the rest, and the loss of the reference."""

    tokens: list[int]
    first_s: float
    rest_s: float
    loss: TextLoss


def _answer(genai: Any, model: Any, pair: Pair, max_new_tokens: int) -> _MeasuredAnswer:
    params = genai.GeneratorParams(model)
    longest = max(max_new_tokens, len(pair.target))
    params.set_search_options(max_length=len(pair.prompt) + longest, do_sample=False)
    generator = genai.Generator(model, params)
    began = time.perf_counter()
    generator.append_tokens(pair.prompt)
    logits = generator.get_logits().copy()
    tokens: list[int] = []
    first = 0.0
    while not generator.is_done() and len(tokens) < max_new_tokens:
        generator.generate_next_token()
        if not tokens:
            first = time.perf_counter() - began
        tokens.append(int(generator.get_next_tokens()[0]))
    rest = time.perf_counter() - began - first
    # The prompt has been read already: back to its end, then the reference token by token, for the build gives the
    # logits of the last position only.
    generator.rewind_to(len(pair.prompt))
    nats = _surprise(logits, pair.target[0])
    for given, wanted in pairwise(pair.target):
        generator.append_tokens([given])
        nats += _surprise(generator.get_logits(), wanted)
    return _MeasuredAnswer(tokens, first, rest, TextLoss(nats, len(pair.target)))


def _surprise(logits: Any, token: int) -> float:
    """Minus the log probability of a token, in nats; `logits` end with a [vocabulary] axis."""
    import numpy as np

    row: np.ndarray[Any, Any] = np.asarray(logits, dtype=np.float64).reshape(-1, logits.shape[-1])[-1]
    peak = row.max()
    return float(peak + np.log(np.exp(row - peak).sum()) - row[token])
