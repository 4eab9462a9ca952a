"""A model for token classification, trained, published and asked at both doors."""

from __future__ import annotations

import json
import urllib.request

import grpc
import pytest
from tidemill.inference.v1 import inference_service_pb2 as pb

from tests.integration.inference.builds import signing_key
from tests.integration.inference.conftest import BuildFolder, Builds, InferenceProcess
from tests.integration.training.bases import make_encoder, write_marked
from tests.integration.training.jobs import marker_spec, work

pytestmark = pytest.mark.real
_TEXTS = ["the room was good and awful", "staff", "lovely hotel", "the staff was very kind and clean"]


@pytest.fixture(scope="module")
def model(inference: InferenceProcess, builds: Builds) -> str:
    """A published model that marks good and bad words."""
    folder = builds.root / "marker"
    report = work(folder, marker_spec(make_encoder(folder / "bert"), write_marked(folder / "marked")))
    build = folder / "variants" / "int8"
    signing_key(builds.root).sign(build)
    digest = next(variant.digest for variant in report.variants if variant.precision == "int8")
    inference.publish("test-marker", BuildFolder(build, digest))
    return "models/test-marker"


def test_spans_are_the_words_that_were_marked(inference: InferenceProcess, model: str) -> None:
    answer = inference.stub.Predict(pb.PredictRequest(model=model, texts=_TEXTS), timeout=60)
    assert [
        [(text[span.start : span.end], span.label) for span in found.spans]
        for text, found in zip(_TEXTS, answer.predictions, strict=True)
    ] == [
        [("good", "GOOD"), ("awful", "BAD")],
        [],
        [("lovely", "GOOD")],
        [("kind", "GOOD"), ("clean", "GOOD")],
    ]
    assert all(0 < span.score <= 1 for found in answer.predictions for span in found.spans)
    assert all(found.answer.startswith("answers/") for found in answer.predictions)


def test_many_texts_keep_their_order(inference: InferenceProcess, model: str) -> None:
    texts = [_TEXTS[number % 4] for number in range(100)]
    answer = inference.stub.Predict(pb.PredictRequest(model=model, texts=texts), timeout=60)
    assert [len(found.spans) for found in answer.predictions] == [2, 0, 1, 2] * 25


def test_the_http_door_gives_the_same(inference: InferenceProcess, model: str) -> None:
    body = json.dumps({"model": "test-marker", "texts": ["房 good"]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{inference.http}/v1/predict", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        [found] = json.load(response)["predictions"]
    # Places are counted in characters, not in bytes.
    assert (2, 6, "GOOD") in [(span["start"], span["end"], span["label"]) for span in found["spans"]]


def test_it_writes_no_text(inference: InferenceProcess, model: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        inference.stub.Generate(pb.GenerateRequest(model=model, text="x"), timeout=60)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
