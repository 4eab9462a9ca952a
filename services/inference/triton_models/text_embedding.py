"""Embeds texts with an encoder in OpenVINO (a Triton model with dynamic batching)."""

from __future__ import annotations

from .encoders import Array, EncoderModel, ReadTexts


class TritonPythonModel(EncoderModel):
    """The model as Triton's Python backend calls it."""

    def outputs(self, found: ReadTexts) -> dict[str, Array]:
        """None: the embedding is that of every encoder."""
        return {}
