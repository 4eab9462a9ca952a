"""Builds of encoders for OpenVINO, and their measurement by that runtime."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from services.kit.engine import EMBEDDING, ENCODER, LOGITS, import_openvino, open_encoder
from services.training.adapters.openvino_export import encoder

N = TypeVar("N", bound=Hashable)
"""What a build is named by."""
CALIBRATION_TEXTS = 128
"""As good as NNCF's usual 300 here, in a third to two thirds of the time (docs/LOG.md, 2026-11-28)."""


def save_fp32(model: Any, target: Path, *, vocabulary: int, outputs: Sequence[str] = (LOGITS, EMBEDDING)) -> None:
    """Writes the fp32 build of an encoder.

    Args:
        model: a torch module that maps (input_ids, attention_mask) to logits, or to logits and an embedding.
        target: folder to create.
        vocabulary: number of token ids.
        outputs: names of what the module gives, see `openvino_export.encoder`.
    """
    target.mkdir(parents=True, exist_ok=True)
    converted = encoder(model, vocabulary=vocabulary, outputs=outputs)
    import_openvino().save_model(converted, str(target / ENCODER), compress_to_fp16=False)


def save_int8(source: Path, target: Path, texts: Sequence[list[int]]) -> None:
    """Writes the build with 8-bit weights and activations, whose ranges are calibrated on training texts.

    Args:
        source: the fp32 build.
        target: folder to create.
        texts: token ids; at most CALIBRATION_TEXTS of them are used.
    """
    import numpy as np

    openvino = import_openvino()
    import nncf

    def inputs(text: list[int]) -> dict[str, Any]:
        ids = np.asarray([text], dtype=np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    target.mkdir(parents=True, exist_ok=True)
    step = max(1, len(texts) // CALIBRATION_TEXTS)
    quantized = nncf.quantize(
        openvino.Core().read_model(str(source / ENCODER)),
        nncf.Dataset(list(texts[::step][:CALIBRATION_TEXTS]), inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=CALIBRATION_TEXTS,
    )
    openvino.save_model(quantized, str(target / ENCODER), compress_to_fp16=False)


def embedding_size(folder: Path) -> int:
    """Width of the embeddings that a build gives; 0 if it gives none."""
    graph = import_openvino().Core().read_model(str(folder / ENCODER))
    found = (port for port in graph.outputs if EMBEDDING in port.get_names())
    return next((port.get_partial_shape()[1].get_length() for port in found), 0)


@dataclass(slots=True)
class EncoderMeasurement:
    """Answers of one build, as `measure` was asked for them, and seconds for each; and its answers to the probes."""

    answers: list[Any] = field(default_factory=list)
    probes: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def latency_p50_ms(self) -> float:
        """Median latency of one text."""
        return statistics.median(self.seconds) * 1000

    @property
    def examples_per_second(self) -> float:
        """Texts per second, one at a time."""
        return len(self.seconds) / sum(self.seconds)


def highest(logits: Any) -> Any:
    """The number of the highest of logits [..., labels]."""
    return logits.argmax(axis=-1).tolist()


def label_numbers(outputs: Any) -> Any:
    """The number of a text's label, or of each of its tokens' labels."""
    return highest(outputs[LOGITS][0])


def measure(
    folders: Mapping[N, Path],
    texts: Sequence[list[int]],
    probes: Sequence[list[int]] = (),
    answer: Callable[[Any], Any] = label_numbers,
) -> dict[N, EncoderMeasurement]:
    """Lets every build read every text, one at a time. For each text the builds take turns.

    Args:
        folders: the builds by their names.
        texts: token ids.
        probes: token ids of texts that are not measured.
        answer: makes an answer of a build's outputs, by their names.
    """
    import numpy as np

    requests = {name: open_encoder(folder, threads=1).create_infer_request() for name, folder in folders.items()}
    found = {name: EncoderMeasurement() for name in folders}

    def answered(request: Any, text: list[int]) -> Any:
        ids = np.asarray([text], dtype=np.int64)
        return answer(request.infer({"input_ids": ids, "attention_mask": np.ones_like(ids)}))

    for request in requests.values():
        for text in texts[:5]:
            answered(request, text)
    for name, request in requests.items():
        found[name].probes = [answered(request, text) for text in probes]
    for text in texts:
        for name, request in requests.items():
            began = time.perf_counter()
            found[name].answers.append(answered(request, text))
            found[name].seconds.append(time.perf_counter() - began)
    return found
