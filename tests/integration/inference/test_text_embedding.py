"""A model that embeds texts, trained, published and asked at both doors."""

from __future__ import annotations

import base64
import json
import urllib.request

import grpc
import numpy as np
import pytest
from tidemill.inference.v1 import inference_service_pb2 as pb

from services.kit.engine import EMBEDDING, open_encoder
from tests.integration.inference.builds import signing_key
from tests.integration.inference.conftest import BuildFolder, Builds, InferenceProcess
from tests.integration.training.bases import make_encoder, write_titled
from tests.integration.training.jobs import embedding_spec, work

pytestmark = pytest.mark.real
_TITLES = ["good lovely", "awful kind", "clean dirty"]
_TEXTS = ["the good room lovely very staff", "kind hotel was awful again", "room dirty and the clean"]


@pytest.fixture(scope="module")
def build(builds: Builds) -> BuildFolder:
    """The int8 build of a trained model."""
    folder = builds.root / "titles"
    report = work(folder, embedding_spec(make_encoder(folder / "bert"), write_titled(folder / "titled")))
    path = folder / "variants" / "int8"
    signing_key(builds.root).sign(path)
    return BuildFolder(path, next(variant.digest for variant in report.variants if variant.precision == "int8"))


@pytest.fixture(scope="module")
def model(inference: InferenceProcess, build: BuildFolder) -> str:
    """It, published; Triton was asked its probes."""
    inference.publish("test-titles", build)
    return "models/test-titles"


def test_texts_lie_close_to_their_titles(inference: InferenceProcess, model: str) -> None:
    answer = inference.stub.Embed(pb.EmbedRequest(model=model, texts=[*_TITLES, *_TEXTS]), timeout=60)
    vectors = np.array([item.values for item in answer.embeddings])
    assert vectors.shape == (6, 32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-4)
    assert (vectors[3:] @ vectors[:3].T).argmax(axis=1).tolist() == [0, 1, 2]


def test_what_triton_serves_is_what_the_build_gives(
    inference: InferenceProcess, model: str, build: BuildFolder
) -> None:
    answer = inference.stub.Embed(pb.EmbedRequest(model=model, texts=["good"]), timeout=60)
    found = open_encoder(build.path, threads=1).create_infer_request()
    # [CLS] good [SEP]
    wanted = found.infer({"input_ids": [[2, 4, 3]], "attention_mask": [[1, 1, 1]]})[EMBEDDING][0]
    assert float(np.dot(wanted, answer.embeddings[0].values)) > 0.9999
    assert answer.embeddings[0].prompt_tokens == 3


def test_the_http_door_gives_the_same(inference: InferenceProcess, model: str) -> None:
    body = json.dumps({"model": "test-titles", "input": _TITLES, "encoding_format": "base64", "dimensions": 8}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{inference.http}/v1/embeddings", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        found = json.load(response)["data"]
    rows = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in found]
    answer = inference.stub.Embed(pb.EmbedRequest(model=model, texts=_TITLES, dimensions=8), timeout=60)
    assert np.array(rows) == pytest.approx(np.array([item.values for item in answer.embeddings]), abs=1e-4)


def test_it_labels_and_writes_nothing(inference: InferenceProcess, model: str) -> None:
    stub = inference.stub
    calls = (
        (stub.Predict, pb.PredictRequest(model=model, texts=["x"])),
        (stub.Generate, pb.GenerateRequest(model=model, text="x")),
    )
    for call, asked in calls:
        with pytest.raises(grpc.RpcError, match="is a model for text_embedding") as refused:
            call(asked, timeout=60)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
