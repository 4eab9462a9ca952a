"""What models of one encoder share: they read texts in batches, count their tokens and embed them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .batches import by_length
from .engine import EMBEDDING, LOGITS, open_encoder
from .labels import probabilities
from .runtimes import manifest_of
from .tracing import BATCH_COUNT, ModelTracing, end_span, otlp_endpoint

_PLAIN_MAX_TOKENS = 512

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class ReadTexts:
    """Texts that were read, each as far as the model reads.

    `probabilities` are of each text, fp32 [labels], or [tokens, labels] of a model that labels tokens, and empty of one
    that labels nothing; they add up to 1 unless each label is independent of the others. `embeddings` fp32 [texts,
    width], where the build gives them.
    """

    encodings: list[Any]
    truncated_tokens: list[int]
    probabilities: list[Array]
    embeddings: Array | None


class Encoder:
    """A loaded build: a graph from input_ids and attention_mask to logits, to the text's embedding, or to both; its
    tokenizer, its manifest.
    """

    def __init__(self, folder: Path, *, independent: bool = False) -> None:
        """`independent`: whether each label has a probability of its own, which says nothing about the others."""
        from tokenizers import Tokenizer

        self._probabilities = probabilities if independent else _softmax
        manifest = manifest_of(folder)
        self.labels: list[str] = manifest["labels"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(int(manifest.get("max_input_tokens") or _PLAIN_MAX_TOKENS))
        self._tokenizer.no_padding()
        # What looks like a special token, such as [SEP], is text, as it was in training.
        self._tokenizer.encode_special_tokens = True
        self._marks = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        graph = open_encoder(folder)
        widths = (port.get_partial_shape()[1].get_length() for port in graph.outputs if EMBEDDING in port.get_names())
        self._width: int = next(widths, 0)
        self._labels_texts = any(LOGITS in port.get_names() for port in graph.outputs)
        self._request = graph.create_infer_request()

    def read(self, texts: list[str]) -> ReadTexts:
        """Reads texts, those of similar length together."""
        encodings = self._tokenizer.encode_batch(texts)
        found = ReadTexts(
            encodings,
            [sum(len(rest.ids) - self._marks for rest in encoding.overflowing) for encoding in encodings],
            [np.empty(0)] * len(texts),
            np.zeros((len(texts), self._width), dtype=np.float32) if self._width else None,
        )
        for group in by_length([len(encoding.ids) for encoding in encodings]):
            self._read_group(group, found)
        return found

    def _read_group(self, group: list[int], found: ReadTexts) -> None:
        ids = [found.encodings[at].ids for at in group]
        longest = max(len(item) for item in ids)
        tokens = np.zeros((len(ids), longest), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, item in enumerate(ids):
            tokens[row, : len(item)] = item
            mask[row, : len(item)] = 1
        outputs = self._request.infer({"input_ids": tokens, "attention_mask": mask})
        if self._labels_texts:
            logits: Array = outputs[LOGITS].astype(np.float32)
            shares = self._probabilities(logits)
            for row, at in enumerate(group):
                found.probabilities[at] = shares[row]
        if found.embeddings is not None:
            found.embeddings[group] = outputs[EMBEDDING]


class EncoderModel:
    """A model as Triton's Python backend calls it. Triton's own warm-up runs before it is ready."""

    independent = False
    """Whether each label has a probability of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the build beside this code."""
        folder = Path(args["model_repository"]) / args["model_version"] / "build"
        config = json.loads(args["model_config"])
        self._tracing = ModelTracing(
            args["model_name"], args["model_version"], otlp_endpoint(config), pb_utils.Logger.log_info
        )
        self.encoder = Encoder(folder, independent=self.independent)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers a batch of requests, each with its own texts; one that cannot be read fails alone."""
        texts: list[str] = []
        parts: list[tuple[slice, str]] = []
        spans = [self._tracing.start("execute", request.parameters()) for request in requests]
        for request in requests:
            read, error = _texts_of(request)
            parts.append((slice(len(texts), len(texts) + len(read)), error))
            texts += read
        found = self.encoder.read(texts)
        outputs = self.outputs(found)
        outputs["prompt_tokens"] = np.array([[len(item.ids)] for item in found.encodings], np.int32).reshape(-1, 1)
        outputs["truncated_tokens"] = np.array(found.truncated_tokens, np.int32).reshape(-1, 1)
        if found.embeddings is not None:
            outputs["embedding"] = found.embeddings
        for span, (_, error) in zip(spans, parts, strict=True):
            end_span(span, {BATCH_COUNT: len(texts)}, error)
        return [
            _response(request, outputs, part, error) for request, (part, error) in zip(requests, parts, strict=True)
        ]

    def outputs(self, found: ReadTexts) -> dict[str, Array]:
        """The outputs of the model's own task, each with a row for each text."""
        raise NotImplementedError

    def finalize(self) -> None:
        """Sends the last spans."""
        self._tracing.shutdown()


def _softmax(logits: Array) -> Array:
    exponents: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Array = (exponents / exponents.sum(axis=-1, keepdims=True)).astype(np.float32)
    return shares


def _response(request: Any, outputs: dict[str, Array], part: slice, error: str) -> Any:
    if error:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(error, pb_utils.TritonError.INVALID_ARG))
    wanted = frozenset(request.requested_output_names())
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(name, value[part]) for name, value in outputs.items() if name in wanted]
    )


def _texts_of(request: Any) -> tuple[list[str], str]:
    """The texts of a request, or what is wrong with them."""
    values = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
    try:
        return [item.decode() if isinstance(item, bytes) else str(item) for item in values], ""
    except UnicodeDecodeError as error:
        return [], f"`text` is not UTF-8: {error}"
