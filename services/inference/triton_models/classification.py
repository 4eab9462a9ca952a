"""Labels texts with an encoder in OpenVINO (a Triton model with dynamic batching)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .batches import by_length
from .engine import open_encoder
from .runtimes import manifest_of
from .tracing import BATCH_COUNT, ModelTracing, end_span, otlp_endpoint

_PLAIN_MAX_TOKENS = 512


class TritonPythonModel:
    """The model as Triton's Python backend calls it. Triton's own warm-up runs before it is ready."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the build beside this code."""
        folder = Path(args["model_repository"]) / args["model_version"] / "build"
        config = json.loads(args["model_config"])
        self._tracing = ModelTracing(
            args["model_name"], args["model_version"], otlp_endpoint(config), pb_utils.Logger.log_info
        )
        self._classifier = Classifier(folder)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers a batch of requests, each with its own texts; one that cannot be read fails alone."""
        texts: list[str] = []
        parts: list[tuple[slice, str]] = []
        spans = [self._tracing.start("execute", request.parameters()) for request in requests]
        for request in requests:
            read, error = read_texts(request)
            parts.append((slice(len(texts), len(texts) + len(read)), error))
            texts += read
        scores = self._classifier.scores(texts)
        for span, (_, error) in zip(spans, parts, strict=True):
            end_span(span, {BATCH_COUNT: len(texts)}, error)
        return [self._response(scores[part], error) for part, error in parts]

    def finalize(self) -> None:
        """Sends the last spans."""
        self._tracing.shutdown()

    def _response(self, scores: np.ndarray[Any, Any], error: str) -> Any:
        if error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(error, pb_utils.TritonError.INVALID_ARG))
        best = scores.argmax(axis=1)
        labels = np.array([[self._classifier.labels[at].encode()] for at in best], dtype=np.object_)
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor("label", labels.reshape(-1, 1)),
                pb_utils.Tensor("score", np.take_along_axis(scores, best[:, None], axis=1)),
                pb_utils.Tensor("scores", scores),
            ]
        )


class Classifier:
    """A loaded build: a graph from input_ids and attention_mask to logits, its tokenizer, its manifest."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        manifest = manifest_of(folder)
        self.labels: list[str] = manifest["labels"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(int(manifest.get("max_input_tokens") or _PLAIN_MAX_TOKENS))
        self._tokenizer.no_padding()
        # What looks like a special token, such as [SEP], is text, as it was in training.
        self._tokenizer.encode_special_tokens = True
        self._request = open_encoder(folder).create_infer_request()

    def scores(self, texts: list[str]) -> np.ndarray[Any, Any]:
        """Probabilities of the labels, fp32 [texts, labels]."""
        found = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        for group in by_length([len(item) for item in ids]):
            found[group] = self.shares([ids[at] for at in group])
        return found

    def shares(self, ids: list[list[int]]) -> np.ndarray[Any, Any]:
        """Probabilities of what the graph chooses from, fp32, its last axis the choices."""
        longest = max(len(item) for item in ids)
        tokens = np.zeros((len(ids), longest), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, item in enumerate(ids):
            tokens[row, : len(item)] = item
            mask[row, : len(item)] = 1
        found = self._request.infer({"input_ids": tokens, "attention_mask": mask})["logits"]
        logits: np.ndarray[Any, Any] = found.astype(np.float32)
        exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares: np.ndarray[Any, Any] = exponents / exponents.sum(axis=-1, keepdims=True)
        return shares.astype(np.float32)


def read_texts(request: Any) -> tuple[list[str], str]:
    """The texts of a request, or what is wrong with them."""
    values = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
    try:
        return [item.decode() if isinstance(item, bytes) else str(item) for item in values], ""
    except UnicodeDecodeError as error:
        return [], f"`text` is not UTF-8: {error}"
