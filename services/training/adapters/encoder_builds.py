"""Builds of encoder classifiers for ONNX Runtime, and their measurement by that runtime."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

logger = logging.getLogger(__name__)


def export_fp32(model: nn.Module, target: Path, *, vocabulary: int, longest: int) -> None:
    """Writes model.onnx: input_ids and attention_mask [batch, length] int64 to logits [batch, labels] fp32.

    Args:
        model: maps the two inputs to logits.
        target: folder to make.
        vocabulary: number of token ids.
        longest: maximum tokens of a text; cannot exceed the model's positions.
    """
    import torch

    model.eval()
    ids = torch.randint(1, vocabulary, (2, min(16, longest - 1)))
    batch, length = torch.export.Dim("batch", min=1, max=256), torch.export.Dim("length", min=2, max=longest)
    target.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model,
        (ids, torch.ones_like(ids)),
        str(target / "model.onnx"),
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def quantize_int8(source: Path, target: Path) -> None:
    """Writes the dynamically quantized model.onnx: int8 weights by channel, activations by tensor at run time.

    `reduce_range` keeps weights in 7 bits: AVX2 adds pairs of products in 16 bits and would overflow (ONNX Runtime's
    quantization guide).
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target.mkdir(parents=True, exist_ok=True)
    quantize_dynamic(
        str(source / "model.onnx"),
        str(target / "model.onnx"),
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        extra_options={"MatMulConstBOnly": True},
    )


@dataclass(slots=True)
class EncoderMeasurement:
    """What one build answered: index of the label for each text, and seconds for each."""

    answers: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def latency_p50_ms(self) -> float:
        """Median latency of one text."""
        return statistics.median(self.seconds) * 1000

    @property
    def examples_per_second(self) -> float:
        """Texts a second, one at a time."""
        return len(self.seconds) / sum(self.seconds)


def measure(folders: dict[str, Path], texts: Sequence[list[int]]) -> dict[str, EncoderMeasurement]:
    """Lets every build classify every text, one at a time, taking turns within each text."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    sessions = {
        name: onnxruntime.InferenceSession(
            str(folder / "model.onnx"), sess_options=options, providers=["CPUExecutionProvider"]
        )
        for name, folder in folders.items()
    }
    found = {name: EncoderMeasurement() for name in folders}

    def classify(session: onnxruntime.InferenceSession, text: list[int]) -> int:
        ids: np.ndarray[Any, Any] = np.asarray([text], dtype=np.int64)
        logits = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        return int(logits[0].argmax())

    for session in sessions.values():
        for text in texts[:5]:
            classify(session, text)
    for text in texts:
        for name, session in sessions.items():
            began = time.perf_counter()
            found[name].answers.append(classify(session, text))
            found[name].seconds.append(time.perf_counter() - began)
    return found
