"""What is asked: a classifier of words that costs next to nothing, and a language model of two layers."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tidemill.inference.v1 import inference_service_pb2 as pb
from tritonclient.grpc import service_pb2 as v2

from services.training.adapters.encoder_builds import save_fp32
from tests.integration.inference import builds
from tests.integration.inference.builds import make_classifier, make_generator

CLASSIFIER, WRITER, ENCODER = "bench-classifier", "bench-writer", "bench-encoder"
TEXT = "the room is good and lovely"


def make(artifacts: Path) -> dict[str, str]:
    """Makes the builds; returns their digests by model."""
    return {
        CLASSIFIER: make_classifier(artifacts / CLASSIFIER),
        WRITER: make_generator(artifacts / WRITER, artifacts.parent / "scratch"),
        ENCODER: make_encoder(artifacts / ENCODER),
    }


def make_encoder(folder: Path) -> str:
    """A classifier of the size of the reviews example (4 layers, width 512), with random weights, in fp32."""
    import torch
    from transformers import BertConfig, BertModel

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shape = BertConfig(
                vocab_size=len(builds.WORDS),
                hidden_size=512,
                num_hidden_layers=4,
                num_attention_heads=8,
                intermediate_size=2048,
            )
            self.encoder = BertModel(shape)
            self.head = torch.nn.Linear(512, len(builds.LABELS))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            found = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            scores: torch.Tensor = self.head(found[:, 0])
            return scores

    torch.manual_seed(7)
    make_classifier(folder)  # for its tokenizer and manifest
    save_fp32(Classifier().eval(), folder, vocabulary=len(builds.WORDS))
    return builds.finish_classifier(folder)


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
