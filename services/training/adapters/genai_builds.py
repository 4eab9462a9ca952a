"""Builds of causal language models for ONNX Runtime GenAI, and their measurement by that runtime."""

from __future__ import annotations

import logging
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.training.domain.recipe import VariantName
from services.training.engine.generation import first_line

logger = logging.getLogger(__name__)

# To be measured (docs/LOG.md): k_quant with 8 bits for the vocabulary projection and the most sensitive
# layers keeps most of the quality that plain 4-bit rounding loses.
_OPTIONS: dict[VariantName, tuple[str, dict[str, Any]]] = {
    "fp32": ("fp32", {}),
    "int8": ("int8", {"block_size": 32, "accuracy_level": 4, "algo_config": "k_quant"}),
    "int4": (
        "int4",
        {
            "block_size": 32,
            "accuracy_level": 4,
            "algo_config": "k_quant",
            "matmul_mixed_precision": "last_matmul:int8,mixed_layers:int8",
        },
    ),
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
    # It takes text as its command line does, and loads what create_model needs of the model's configuration.
    create_model(*place, **parse_extra_options(*place, given))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (merged / name).is_file() and not (target / name).is_file():
            shutil.copyfile(merged / name, target / name)


@dataclass(slots=True)
class GenaiMeasurement:
    """What one build answered, and how fast: seconds to the first token, and tokens a second after it."""

    answers: list[str] = field(default_factory=list)
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
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[VariantName, GenaiMeasurement]:
    """Lets every build answer every prompt greedily, one request at a time.

    The builds take turns within each prompt, so that whatever else the machine does hits all of them.
    """
    import onnxruntime_genai as genai

    genai.disable_telemetry_events()
    models = {name: genai.Model(str(folder)) for name, folder in folders.items()}
    tokenizers = {name: genai.Tokenizer(model) for name, model in models.items()}
    found: dict[VariantName, GenaiMeasurement] = {name: GenaiMeasurement() for name in folders}
    warm_up = prompts[0][:16]
    for model in models.values():
        _answer(genai, model, warm_up, 2)
    for number, prompt in enumerate(prompts, start=1):
        for name, model in models.items():
            tokens, first, rest = _answer(genai, model, prompt, max_new_tokens)
            measured = found[name]
            measured.answers.append(first_line(tokenizers[name].decode(tokens)))
            measured.first_token_s.append(first)
            if len(tokens) > 1:
                measured.decode_rates.append((len(tokens) - 1) / rest)
        on_progress(number)
    return found


def _answer(genai: Any, model: Any, prompt: list[int], max_new_tokens: int) -> tuple[list[int], float, float]:
    """Tokens of the answer without its end, seconds to the first, seconds for the others."""
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + max_new_tokens, do_sample=False)
    generator = genai.Generator(model, params)
    began = time.perf_counter()
    generator.append_tokens(prompt)
    tokens: list[int] = []
    first = 0.0
    while not generator.is_done():
        generator.generate_next_token()
        if not tokens:
            first = time.perf_counter() - began
        tokens.append(int(generator.get_next_tokens()[0]))
    rest = time.perf_counter() - began - first
    return tokens, first, rest
