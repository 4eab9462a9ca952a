"""An encoder in PyTorch, fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine.encoders import Encoder


def classifier(run: str, base: str, labels: int) -> Any:
    """The tuned classifier of a run."""
    import torch
    from safetensors.torch import load_model
    from transformers import AutoModel

    from services.training.engine.classifier import build_classifier

    encoder: Any = AutoModel.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    model: Any = build_classifier(encoder, encoder.config.hidden_size, labels, seed=0)
    load_model(model, str(Path(run) / "merged" / "model.safetensors"))
    return model.eval()


class Subject(Encoder):
    def __init__(self, run: str, base: str, labels: int) -> None:
        import torch

        torch.set_num_threads(1)
        self._torch, self._model = torch, classifier(run, base, labels)

    def logits(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with self._torch.inference_mode():
            tokens = self._torch.from_numpy(ids)
            return np.asarray(self._model(tokens, self._torch.ones_like(tokens)))
