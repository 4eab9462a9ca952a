"""An encoder in OpenVINO."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine.encoders import Encoder
from services.kit.engine import import_openvino


class Subject(Encoder):
    def __init__(self, folder: str) -> None:
        openvino = import_openvino()
        # Two streams of one thread each: two requests are computed at a time.
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": 2}
        self._model = openvino.Core().compile_model(str(Path(folder) / "openvino_model.xml"), "CPU", options)
        self._local = threading.local()

    def logits(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if not hasattr(self._local, "request"):
            self._local.request = self._model.create_infer_request()
        found = self._local.request.infer({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        return np.asarray(found["logits"])
