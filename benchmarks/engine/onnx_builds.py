"""Builds for ONNX Runtime and its GenAI, as Tidemill made them before OpenVINO (docs/adr/0015). Runs in a worker."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

_LANGUAGE: dict[str, dict[str, Any]] = {
    "fp32": {},
    "int8": {"block_size": 32, "accuracy_level": 4},
    "int4": {"block_size": 32, "accuracy_level": 4, "matmul_mixed_precision": "mixed_layers:int8"},
}


class Subject:
    def language(self, merged: str, target: str, variant: str) -> None:
        from onnxruntime_genai.models.builder import create_model, parse_extra_options

        Path(target).mkdir(parents=True)
        place = ("", merged, target, variant, "cpu", str(Path(target).parent / "cache"))
        given = [f"{key}={value}" for key, value in {"prune_lm_head": "true", **_LANGUAGE[variant]}.items()]
        with contextlib.redirect_stdout(io.StringIO()):
            create_model(*place, **parse_extra_options(*place, given))

    def encoder(self, run: str, base: str, labels: int, longest: int, target: str) -> None:
        """Writes fp32 and dynamic int8 of a run's classifier."""
        import torch
        from onnxruntime.quantization import QuantType, quantize_dynamic

        from benchmarks.engine.encoder_torch import classifier

        model = classifier(run, base, labels)
        ids = torch.randint(1, 1000, (2, 16))
        batch, length = torch.export.Dim("batch", min=1, max=256), torch.export.Dim("length", min=2, max=longest)
        for name in ("fp32", "int8"):
            (Path(target) / name).mkdir(parents=True)
        torch.onnx.export(
            model,
            (ids, torch.ones_like(ids)),
            f"{target}/fp32/model.onnx",
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        quantize_dynamic(
            f"{target}/fp32/model.onnx",
            f"{target}/int8/model.onnx",
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            extra_options={"MatMulConstBOnly": True},
        )
