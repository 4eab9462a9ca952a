"""Builds of causal language models for OpenVINO GenAI, and their measurement by that runtime."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from services.kit.engine import LANGUAGE_MODEL, TOKENIZERS, import_openvino, open_language_model
from services.kit.probes import MAX_TOKENS as PROBE_TOKENS
from services.training.adapters.openvino_export import language_model, tokenizers_of
from services.training.domain.tasks import VariantName
from services.training.engine.generation import first_line
from services.training.engine.metrics import TextLoss
from services.training.engine.tasks import Pair

_BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# Enough for one answer at a time of any model that is trained here.
_CACHE_BYTES = 512 * 2**20


class LanguageBuilds:
    """Creates the builds of one merged model, which is converted once for all of them."""

    def __init__(self, merged: Path) -> None:
        """`merged` is a folder in Hugging Face's layout, fp32."""
        self._merged = merged

    @cached_property
    def _converted(self) -> Any:
        return language_model(self._merged)

    @cached_property
    def _tokenizers(self) -> Any:
        return tokenizers_of(self._merged)

    def build(self, target: Path, variant: VariantName) -> None:
        """Writes the folder of a variant."""
        openvino = import_openvino()
        import nncf

        options: dict[VariantName, dict[str, Any]] = {
            "int8": {"mode": nncf.CompressWeightsMode.INT8_ASYM},
            # The widths of a small model are seldom multiples of 128. The fifth of the weights that loses most by
            # rounding stays in 8 bits.
            "int4": {
                "mode": nncf.CompressWeightsMode.INT4_ASYM,
                "group_size": 64,
                "ratio": 0.8,
                "advanced_parameters": nncf.AdvancedCompressionParameters(
                    group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
                ),
            },
        }
        target.mkdir(parents=True, exist_ok=True)
        model = self._converted
        if variant in options:
            model = nncf.compress_weights(model.clone(), **options[variant])
        openvino.save_model(model, str(target / LANGUAGE_MODEL), compress_to_fp16=False)
        for name, graph in zip(TOKENIZERS, self._tokenizers or (), strict=False):
            openvino.save_model(graph, str(target / name), compress_to_fp16=False)
        for name in _BESIDE:
            if (self._merged / name).is_file():
                shutil.copyfile(self._merged / name, target / name)


@dataclass(slots=True)
class LanguageMeasurement:
    """Answers of one build and their speed: seconds to the first token, and tokens per second after it.

    `losses` are those of the reference answers; `probes` are answers that are not measured.
    """

    answers: list[str] = field(default_factory=list)
    losses: list[TextLoss] = field(default_factory=list)
    probes: list[str] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    decode_rates: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Median decoding rate of single requests."""
        return statistics.median(self.decode_rates) if self.decode_rates else 0.0

    @property
    def time_to_first_token_ms(self) -> float:
        """Median time to the first token."""
        return statistics.median(self.first_token_s) * 1000 if self.first_token_s else 0.0


def measure(
    folders: dict[VariantName, Path],
    pairs: Sequence[Pair],
    *,
    max_new_tokens: int,
    end: int,
    probes: Sequence[Sequence[int]] = (),
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[VariantName, LanguageMeasurement]:
    """Lets every build answer every prompt greedily, one request at a time, and measures its loss on the target.

    For each prompt the builds take turns, so that other load on the machine affects all of them. Answers and losses
    come from the engine that also serves, with its paged attention and 8-bit cache.

    Args:
        folders: the builds.
        pairs: prompts and reference answers.
        max_new_tokens: longest answer.
        end: the token that ends an answer.
        probes: prompts for short answers that are not measured, see `services.kit.probes`.
        on_progress: called with the number of finished prompts.
    """
    from tokenizers import Tokenizer

    engines = {name: Engine(folder) for name, folder in folders.items()}
    tokenizers = {name: Tokenizer.from_file(str(folder / "tokenizer.json")) for name, folder in folders.items()}
    found: dict[VariantName, LanguageMeasurement] = {name: LanguageMeasurement() for name in folders}
    for name, engine in engines.items():
        engine.answer(pairs[0].prompt[:16], 2, end)
        for prompt in probes:
            tokens, _, _ = engine.answer(prompt, PROBE_TOKENS, end)
            found[name].probes.append(tokenizers[name].decode(tokens, skip_special_tokens=True))
    for number, pair in enumerate(pairs, start=1):
        for name, engine in engines.items():
            tokens, first_s, rest_s = engine.answer(pair.prompt, max_new_tokens, end)
            measured = found[name]
            measured.answers.append(first_line(tokenizers[name].decode(tokens, skip_special_tokens=True)))
            measured.losses.append(engine.loss(pair))
            measured.first_token_s.append(first_s)
            if len(tokens) > 1:
                measured.decode_rates.append((len(tokens) - 1) / rest_s)
        on_progress(number)
    return found


class Engine:
    """A loaded build that answers one request at a time."""

    def __init__(self, folder: Path) -> None:
        self._pipeline, _ = open_language_model(folder, cache_bytes=_CACHE_BYTES, max_active=1, prefix_caching=False)
        self._requests = 0

    def answer(self, prompt: Sequence[int], limit: int, end: int) -> tuple[list[int], float, float]:
        """The tokens of a greedy answer, seconds to the first token, and seconds for the others."""
        began = time.perf_counter()
        handle = self._add(prompt, max_new_tokens=limit, stop_token_ids={end})
        tokens: list[int] = []
        first = 0.0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            while handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
            if tokens and not first:
                first = time.perf_counter() - began
        return tokens, first, time.perf_counter() - began - first

    def loss(self, pair: Pair) -> TextLoss:
        """Loss of the reference answer: with `echo` the engine returns the log probability of each prompt token."""
        length = len(pair.prompt)
        handle = self._add([*pair.prompt, *pair.target], max_new_tokens=1, echo=True, logprobs=1)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        (output,) = handle.read_all()
        nats = -sum(output.generated_log_probs[length : length + len(pair.target)])
        return TextLoss(float(nats), len(pair.target))

    def _add(self, prompt: Sequence[int], **options: Any) -> Any:
        import numpy as np
        import openvino_genai

        config = openvino_genai.GenerationConfig(do_sample=False, **options)
        self._requests += 1
        tokens = import_openvino().Tensor(np.asarray([prompt], dtype=np.int64))
        return self._pipeline.add_request(self._requests, tokens, config)
