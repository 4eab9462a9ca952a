"""Opens models in OpenVINO, for evaluation and for serving alike, so that what is measured is what serves.

It is copied into Triton with each published version, and therefore imports nothing of Tidemill's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LANGUAGE_MODEL, ENCODER = "openvino_model.xml", "openvino_model.xml"
"""Files of the graph; the weights lie beside them."""
TOKENIZERS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
"""Graphs of a language model's tokenizer: the engine knows from them what its tokens spell, which a grammar needs."""
LOGITS, EMBEDDING = "logits", "embedding"
"""Outputs of an encoder's graph. Builds from before embeddings have the first only."""
RUNTIME = "openvino"
"""What the manifest of a build names."""
QUEUE_FULL = "requests wait already; ask again in"
"""Part of a full queue's error message, which callers match: of an error in a stream Triton passes on only the text."""
INVALID, FAILED = "INVALID_ARGUMENT: ", "INTERNAL: "
"""Beginnings of the texts of other errors, for the same reason: the request's fault, and ours."""
BLOCK = 32
"""Tokens per block of the key-value cache on a CPU."""
# With these instructions OpenVINO multiplies 8-bit weights by 8-bit activations. Without them OpenVINO 2026.4 builds a
# graph that cannot be run ("could not create a primitive descriptor"), unless activations are left in fp32.
_VNNI = frozenset({"avx_vnni", "avx512_vnni"})
_ISAS_WITHOUT_VNNI = frozenset({"SSE41", "AVX", "AVX2", "AVX512_CORE"})
# Most prompt tokens of one step. A longer prompt is read in parts, and running answers continue between the parts.
_STEP_TOKENS = 64


def weights_of(graph: str) -> str:
    """Name of the file with a graph's weights. OpenVINO reads it as numbers; nothing in it is executed."""
    return Path(graph).with_suffix(".bin").name


def import_openvino() -> Any:
    """The module `openvino`, without its telemetry.

    The package openvino-telemetry sends what is converted and quantized, without asking. requirements.lock leaves it
    out; where something else installed it, it is not found.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


def _options() -> dict[str, Any]:
    # On a CPU with bf16 OpenVINO would use it by default. Quality would then differ from what another machine measured,
    # and these models are not faster with it (docs/adr/0015).
    # Weights are read, not mapped: whoever overwrote a mapped file would change or crash the running model.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_MMAP": False}
    if not _has_vnni():
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    return options


def _has_vnni() -> bool:
    """Whether this CPU has VNNI and ONEDNN_MAX_CPU_ISA allows it."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _ISAS_WITHOUT_VNNI:
        return False
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return any(_VNNI.intersection(line.split()) for line in lines if line.startswith("flags"))


def open_language_model(folder: Path, *, cache_bytes: int, max_active: int, prefix_caching: bool) -> tuple[Any, int]:
    """Opens a build for continuous batching.

    Args:
        folder: the build, with `config.json` in Hugging Face's layout.
        cache_bytes: limit of the key-value cache; memory is allocated as it fills.
        max_active: number of answers that are generated side by side.
        prefix_caching: keep the cache of earlier prompts for prompts with the same beginning.

    Returns:
        The `openvino_genai.ContinuousBatchingPipeline`, and how many tokens its cache holds.

    Raises:
        ValueError: the graph cannot be read.
    """
    import_openvino()
    import openvino_genai

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 0
    scheduler.num_kv_blocks = max(1, cache_bytes // _block_bytes(config))
    scheduler.max_num_seqs = max_active
    scheduler.max_num_batched_tokens = _STEP_TOKENS
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = prefix_caching
    with _readable(LANGUAGE_MODEL):
        pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", _options())
    return pipeline, scheduler.num_kv_blocks * BLOCK


def _block_bytes(config: dict[str, Any]) -> int:
    """Bytes of a block: 8-bit keys with a scale and zero point per channel, 8-bit values with them per token."""
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    of_head = (width * BLOCK + width * 8) + (width + 8) * BLOCK
    return int(config["num_hidden_layers"] * heads * of_head)


def open_encoder(folder: Path, *, threads: int = 0) -> Any:
    """Compiles a classifier, `openvino.CompiledModel`; `threads` 0 lets OpenVINO choose.

    Raises:
        ValueError: the graph cannot be read.
    """
    openvino = import_openvino()
    options: dict[str, Any] = {**_options(), "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    with _readable(ENCODER):
        return openvino.Core().compile_model(str(folder / ENCODER), "CPU", options)


@contextmanager
def _readable(graph: str) -> Iterator[None]:
    """Names the file that cannot be read; OpenVINO's own message begins with a position in its source code."""
    try:
        yield
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line and not line.startswith("Exception from")]
        raise ValueError(f"{graph} cannot be read: {' '.join(lines)}") from error
