"""Finds named parts of texts with an encoder in OpenVINO (a Triton model with dynamic batching)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from .encoders import Array, EncoderModel, ReadTexts
from .spans import spans_of


class TritonPythonModel(EncoderModel):
    """The model as Triton's Python backend calls it."""

    def outputs(self, found: ReadTexts) -> dict[str, Array]:
        """The named parts of each text, in their order, as JSON."""
        rows = map(self._spans_json, found.encodings, found.probabilities)
        return {"spans_json": np.array([[row] for row in rows], dtype=np.object_).reshape(-1, 1)}

    def _spans_json(self, encoding: Any, probabilities: Array) -> bytes:
        """`probabilities` fp32 [tokens, tags], padding included."""
        own = probabilities[: len(encoding.ids)]
        tags = [self.encoder.labels[number] for number in own.argmax(axis=-1)]
        spans = spans_of(tags, encoding.offsets, own.max(axis=-1).tolist())
        return json.dumps(
            [{"start": s.start, "end": s.end, "label": s.label, "score": round(s.score, 6)} for s in spans],
            ensure_ascii=False,
        ).encode()
