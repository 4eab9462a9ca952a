"""Labels texts with an encoder in OpenVINO (a Triton model with dynamic batching)."""

from __future__ import annotations

import numpy as np

from .encoders import Array, EncoderModel, ReadTexts


class TritonPythonModel(EncoderModel):
    """The model as Triton's Python backend calls it."""

    def outputs(self, found: ReadTexts) -> dict[str, Array]:
        """The best label, its probability, and those of all labels."""
        labels = self.encoder.labels
        scores = np.array(found.probabilities, dtype=np.float32).reshape(-1, len(labels))
        best = scores.argmax(axis=1)
        return {
            "label": np.array([[labels[at].encode()] for at in best], dtype=np.object_).reshape(-1, 1),
            "score": np.take_along_axis(scores, best[:, None], axis=1),
            "scores": scores,
        }
