"""Finds named parts of texts with an encoder in OpenVINO (a Triton model with dynamic batching)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .batches import by_length
from .classification import Classifier, read_texts
from .spans import Span, spans_of
from .tracing import BATCH_COUNT, ModelTracing, end_span, otlp_endpoint


class TritonPythonModel:
    """The model as Triton's Python backend calls it. Triton's own warm-up runs before it is ready."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the build beside this code."""
        folder = Path(args["model_repository"]) / args["model_version"] / "build"
        config = json.loads(args["model_config"])
        self._tracing = ModelTracing(
            args["model_name"], args["model_version"], otlp_endpoint(config), pb_utils.Logger.log_info
        )
        self._recognizer = Recognizer(folder)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers a batch of requests, each with its own texts; one that cannot be read fails alone."""
        texts: list[str] = []
        parts: list[tuple[slice, str]] = []
        spans = [self._tracing.start("execute", request.parameters()) for request in requests]
        for request in requests:
            read, error = read_texts(request)
            parts.append((slice(len(texts), len(texts) + len(read)), error))
            texts += read
        found = self._recognizer.spans(texts)
        for span, (_, error) in zip(spans, parts, strict=True):
            end_span(span, {BATCH_COUNT: len(texts)}, error)
        return [_response(found[part], error) for part, error in parts]

    def finalize(self) -> None:
        """Sends the last spans."""
        self._tracing.shutdown()


class Recognizer(Classifier):
    """A loaded build: a graph from input_ids and attention_mask to the logits of each token's tags."""

    def spans(self, texts: list[str]) -> list[list[Span]]:
        """The named parts of each text, in their order."""
        found: list[list[Span]] = [[] for _ in texts]
        encodings = self._tokenizer.encode_batch(texts)
        for group in by_length([len(encoding.ids) for encoding in encodings]):
            shares = self.shares([encodings[at].ids for at in group])  # [texts, tokens, tags]
            best = shares.argmax(axis=-1)
            for row, at in enumerate(group):
                length = len(encodings[at].ids)
                tags = [self.labels[number] for number in best[row, :length]]
                scores = shares[row, :length].max(axis=-1).tolist()
                found[at] = spans_of(tags, encodings[at].offsets, scores)
        return found


def _response(found: list[list[Span]], error: str) -> Any:
    if error:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(error, pb_utils.TritonError.INVALID_ARG))
    rows = [
        json.dumps(
            [{"start": s.start, "end": s.end, "label": s.label, "score": round(s.score, 6)} for s in spans],
            ensure_ascii=False,
        ).encode()
        for spans in found
    ]
    tensor = np.array([[row] for row in rows], dtype=np.object_).reshape(-1, 1)
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("spans_json", tensor)])
