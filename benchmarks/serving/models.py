"""What is asked: a classifier of words that costs next to nothing, and a language model of two layers."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tidemill.inference.v1 import inference_service_pb2 as pb
from tritonclient.grpc import service_pb2 as v2

from tests.integration.inference.builds import make_classifier, make_generator

CLASSIFIER, WRITER = "bench-classifier", "bench-writer"
TEXT = "the room is good and lovely"


def make(artifacts: Path) -> dict[str, str]:
    """Makes the builds; returns their digests by model."""
    return {
        CLASSIFIER: make_classifier(artifacts / CLASSIFIER),
        WRITER: make_generator(artifacts / WRITER, artifacts.parent / "scratch"),
    }


def infer(model: str, texts: Sequence[str]) -> bytes:
    """ModelInfer of a classifier, as the gateway itself asks."""
    request: Any = v2.ModelInferRequest(model_name=model)
    request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
    request.raw_input_contents.append(b"".join(_element(text.encode()) for text in texts))
    request.outputs.add(name="scores")
    return bytes(request.SerializeToString())


def infer_json(texts: Sequence[str]) -> bytes:
    """The same over HTTP."""
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts), 1], "data": list(texts)}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "scores"}]}).encode()


def predict(model: str, texts: Sequence[str]) -> bytes:
    """Predict of the contract."""
    return pb.PredictRequest(model=f"models/{model}", texts=texts).SerializeToString()


def predict_json(model: str, texts: Sequence[str]) -> bytes:
    """`POST /v1/predict`."""
    return json.dumps({"model": model, "texts": list(texts)}).encode()


def stream(model: str, text: str, tokens: int) -> bytes:
    """ModelStreamInfer of a language model, as the gateway itself asks."""
    request: Any = v2.ModelInferRequest(model_name=model)
    request.inputs.add(name="text", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(_element(text.encode()))
    request.inputs.add(name="max_tokens", datatype="INT32", shape=[1])
    request.raw_input_contents.append(struct.pack("<i", tokens))
    return bytes(request.SerializeToString())


def chat_json(model: str, text: str, tokens: int, **options: Any) -> bytes:
    """`POST /v1/chat/completions`."""
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": tokens, **options}).encode()


def _element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data
