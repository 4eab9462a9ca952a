"""Assigns any number of labels to texts with an encoder in OpenVINO (a Triton model with dynamic batching)."""

from __future__ import annotations

import json

import numpy as np

from .encoders import Array, EncoderModel, ReadTexts
from .labels import assigned


class TritonPythonModel(EncoderModel):
    """The model as Triton's Python backend calls it."""

    independent = True

    def outputs(self, found: ReadTexts) -> dict[str, Array]:
        """The labels that are assigned, as JSON, and the scores of all labels."""
        labels = self.encoder.labels
        scores = np.array(found.probabilities, dtype=np.float32).reshape(-1, len(labels))
        rows = [json.dumps(assigned(labels, row), ensure_ascii=False).encode() for row in scores.tolist()]
        return {"labels_json": np.array([[row] for row in rows], dtype=np.object_).reshape(-1, 1), "scores": scores}
