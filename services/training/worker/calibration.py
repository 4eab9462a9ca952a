"""Measures how fast this machine runs builds: `python -m services.training.worker.calibration encoder|causal`.

It makes small models with random weights, builds them as a run does, and measures each by the runtime that serves. What
it prints is JSON, for `services.training.adapters.calibration`. It knows nothing of what the figures are for.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from services.training.domain.device import Pass
from services.training.domain.tasks import VARIANTS, Architecture, VariantName
from services.training.engine.build_costs import fit_speed, reading, tail_of, writing
from services.training.engine.model_shape import Shape
from services.training.worker.__main__ import OFFLINE

SIZES: Mapping[Architecture, Sequence[Mapping[str, int]]] = {
    "encoder": (
        {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 3},
        {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 6},
    ),
    "causal": (
        {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4},
        {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8},
    ),
}
LENGTHS: Mapping[Architecture, Sequence[int]] = {"encoder": (16, 64, 128, 256), "causal": (32, 128, 256)}
ROUNDS: Mapping[Architecture, int] = {"encoder": 12, "causal": 5}
ANSWER = 24
_VOCABULARY = 8192
_CALIBRATION_TEXTS = 16
_END = 1
_MS = 1000.0


def encoder_config(sizes: Mapping[str, int]) -> dict[str, Any]:
    """A `config.json` of BERT's kind."""
    return {"vocab_size": _VOCABULARY, "max_position_embeddings": 512, "type_vocab_size": 2, **sizes}


def writer_config(sizes: Mapping[str, int]) -> dict[str, Any]:
    """A `config.json` of Llama's kind; half as many heads for keys."""
    keys = {"num_key_value_heads": max(1, sizes["num_attention_heads"] // 2)}
    return {"vocab_size": _VOCABULARY, "max_position_embeddings": 2048, "tie_word_embeddings": True, **keys, **sizes}


def build_encoder(config: Mapping[str, Any], target: Path) -> dict[VariantName, Path]:
    """The builds of an encoder with random weights, in folders below `target`."""
    import torch
    from transformers import BertConfig, BertModel

    from services.training.adapters.encoder_builds import save_fp32, save_int8
    from services.training.engine.classifier import build_classifier, with_embedding

    torch.manual_seed(0)
    model: Any = BertModel(BertConfig(**config))
    classifier = build_classifier(model, config["hidden_size"], 2, seed=0).eval()
    folders: dict[VariantName, Path] = {"fp32": target / "fp32", "int8": target / "int8"}
    save_fp32(with_embedding(classifier), folders["fp32"], vocabulary=config["vocab_size"])
    save_int8(folders["fp32"], folders["int8"], [_text(64, seed) for seed in range(_CALIBRATION_TEXTS)])
    return folders


def build_writer(config: Mapping[str, Any], target: Path) -> dict[VariantName, Path]:
    """The builds of a writer with random weights, in folders below `target`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from services.training.adapters.language_builds import LanguageBuilds

    torch.manual_seed(0)
    merged = target / "merged"
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(str(merged))
    first, end = "w0", f"w{_END}"
    words = Tokenizer(models.WordLevel({f"w{at}": at for at in range(config["vocab_size"])}, unk_token=first))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    make: Any = PreTrainedTokenizerFast
    make(tokenizer_object=words, unk_token=first, eos_token=end).save_pretrained(str(merged))
    builds, folders = LanguageBuilds(merged), {name: target / name for name in VARIANTS}
    for name, folder in folders.items():
        builds.build(folder, name)
    return folders


def build(architecture: Architecture, config: Mapping[str, Any], target: Path) -> dict[VariantName, Path]:
    """The builds of a model with random weights, in folders below `target`."""
    return (build_encoder if architecture == "encoder" else build_writer)(config, target)


def config_of(architecture: Architecture, sizes: Mapping[str, int]) -> dict[str, Any]:
    """A `config.json` of the architecture."""
    return (encoder_config if architecture == "encoder" else writer_config)(sizes)


Key = tuple[str, VariantName]
"""A name of a model, and one of its builds."""
Times = Mapping[Key, Mapping[int, list[tuple[float, float]]]]
"""Milliseconds up to the first token, and for each later one (zero for encoders), by the length of the input."""


def measure(
    architecture: Architecture, folders: Mapping[Key, Path], lengths: Sequence[int], answer: int, rounds: int
) -> Times:
    """Measures builds and lengths in turn, so that other load on the machine affects all of them.

    Args:
        architecture: of all of them.
        folders: the builds.
        lengths: of the inputs, in tokens.
        answer: tokens of a writer's answer.
        rounds: how often.
    """
    found: dict[Key, dict[int, list[tuple[float, float]]]] = {
        key: {length: [] for length in lengths} for key in folders
    }
    if architecture == "encoder":
        from services.training.adapters import encoder_builds

        texts = [_text(length, seed) for seed in range(rounds) for length in lengths]
        taken: Any = encoder_builds.measure(cast("Any", dict(folders)), texts)
        for key, measured in taken.items():
            for at, seconds in enumerate(measured.seconds):
                found[key][lengths[at % len(lengths)]].append((seconds * _MS, 0.0))
        return found
    from services.training.adapters.language_builds import Engine

    engines = {key: Engine(folder) for key, folder in folders.items()}
    for engine in engines.values():
        engine.answer(_text(16, 0), 2, _END)
    for seed in range(rounds):
        for length in lengths:
            for key, engine in engines.items():
                tokens, first, rest = engine.answer(_text(length, seed), answer, _END)
                found[key][length].append((first * _MS, rest * _MS / max(1, len(tokens) - 1)))
    return found


def fitted(architecture: Architecture, shapes: Mapping[str, Shape], times: Times) -> dict[str, Any]:
    """The speed of each build, see `services.training.domain.device.Speed`, and the tail of the times."""
    passes: dict[VariantName, list[Pass]] = {}
    samples: list[Sequence[float]] = []
    for (name, variant), by_length in times.items():
        for length, pairs in by_length.items():
            firsts, laters = [first for first, _ in pairs], [later for _, later in pairs]
            found = [reading(shapes[name], variant, length, statistics.median(firsts))]
            samples.append(firsts)
            if architecture == "causal":
                found.append(writing(shapes[name], variant, length, statistics.median(laters)))
                samples.append(laters)
            passes.setdefault(variant, []).extend(found)
    return {
        "speeds": {variant: asdict(fit_speed(found)) for variant, found in passes.items()},
        "tail": tail_of(samples),
    }


def calibration_builds(architecture: Architecture, scratch: Path) -> tuple[dict[str, Shape], dict[Key, Path]]:
    """The models that a machine is measured with: shapes by name, and the folders of their builds."""
    configs = {f"calibration {at}": config_of(architecture, sizes) for at, sizes in enumerate(SIZES[architecture])}
    shapes = {name: Shape.of_config(config) for name, config in configs.items()}
    folders = {
        (name, variant): folder
        for name, config in configs.items()
        for variant, folder in build(architecture, config, scratch / name.replace(" ", "-")).items()
    }
    return shapes, folders


def calibrate(architecture: Architecture, scratch: Path) -> dict[str, Any]:
    """The speed of this machine, see `fitted`."""
    shapes, folders = calibration_builds(architecture, scratch)
    times = measure(architecture, folders, LENGTHS[architecture], ANSWER, ROUNDS[architecture])
    return fitted(architecture, shapes, times)


def _text(length: int, seed: int) -> list[int]:
    """Token ids, none of them special."""
    return [2 + (seed * 7919 + at * 104729) % (_VOCABULARY - 2) for at in range(length)]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture", choices=("encoder", "causal"))
    arguments = parser.parse_args()
    os.environ.update(OFFLINE)
    logging.disable(logging.WARNING)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tidemill-calibration-") as folder:
        found = calibrate(arguments.architecture, Path(folder))
    sys.stdout.write(json.dumps({**found, "seconds": time.perf_counter() - began}) + "\n")


if __name__ == "__main__":
    main()
