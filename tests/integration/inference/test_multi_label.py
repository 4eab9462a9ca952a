"""A model that assigns several labels, trained, published and asked at the doors."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import route_pb2

from services.kit.probes import Probes
from services.training.domain.tasks import MultiLabelClassificationTask
from tests.integration.inference.builds import make_classifier, signing_key
from tests.integration.inference.conftest import BuildFolder, Builds, InferenceProcess
from tests.integration.inference.test_service import reason_of
from tests.integration.training.bases import make_encoder, write_tagged
from tests.integration.training.jobs import labeller_spec, work

pytestmark = pytest.mark.real
_TEXTS = ["the good room bad was and", "the room was and staff very", "again lovely hotel the room was"]
_FOUND = [{"praise", "complaint"}, set(), {"praise", "repeated"}]


@pytest.fixture(scope="module")
def model(inference: InferenceProcess, builds: Builds) -> str:
    """A published model that labels praise, complaints and repetitions; its probes were asked when it was published."""
    folder = builds.root / "labeller"
    task = MultiLabelClassificationTask("labels", 32, calibration_share=0.2)
    spec = labeller_spec(make_encoder(folder / "bert"), write_tagged(folder / "tagged"), task)
    report = work(folder, spec)
    build = folder / "variants" / "int8"
    signing_key(builds.root).sign(build)
    digest = next(variant.digest for variant in report.variants if variant.precision == "int8")
    inference.publish("test-labeller", BuildFolder(build, digest))
    return "models/test-labeller"


def test_a_text_has_all_of_its_labels(inference: InferenceProcess, model: str) -> None:
    answer = inference.stub.Predict(pb.PredictRequest(model=model, texts=_TEXTS), timeout=60)
    assert [set(found.labels) for found in answer.predictions] == _FOUND
    for found in answer.predictions:
        assert found.label == ""
        assert set(found.scores) == {"complaint", "praise", "repeated"}
        assert {label for label, score in found.scores.items() if score >= 0.5} == set(found.labels)
        scores = [found.scores[label] for label in found.labels]
        assert scores == sorted(scores, reverse=True)


def test_the_http_door_gives_the_same(inference: InferenceProcess, model: str) -> None:
    body = json.dumps({"model": "test-labeller", "texts": _TEXTS}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{inference.http}/v1/predict", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert [set(found["labels"]) for found in json.load(response)["predictions"]] == _FOUND


def test_a_client_of_kserve_v2_gets_the_labels_as_json(inference: InferenceProcess, model: str) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{inference.port}") as client:
        tensor = triton.InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[_TEXTS[0].encode()]], dtype=np.object_))
        outputs = [triton.InferRequestedOutput(name) for name in ("labels_json", "scores")]
        found = client.infer("test-labeller", [tensor], outputs=outputs)
    [labels] = found.as_numpy("labels_json").reshape(-1)
    assert set(json.loads(labels)) == _FOUND[0]
    assert found.as_numpy("scores").shape == (1, 3)


def test_a_build_that_assigns_other_labels_is_refused(inference: InferenceProcess, builds: Builds, model: str) -> None:
    folder = builds.root / "labels-turned"
    probes = Probes(("good room", "bad"), ('["positive"]', '["negative"]'))
    digest = make_classifier(folder, weight=-2.0, task="multi_label_classification", probes=probes)
    with pytest.raises(grpc.RpcError) as refused:
        inference.publish("test-labels-turned", BuildFolder(folder, digest))
    error: Any = refused.value
    assert reason_of(error) == "ANSWERS_DIFFER"


def test_such_a_model_has_no_cascade(inference: InferenceProcess, builds: Builds, model: str) -> None:
    folder = builds.root / "larger"
    inference.publish("test-larger", BuildFolder(folder, make_classifier(folder)))
    cascade = route_pb2.Cascade(model="models/test-larger", min_confidence=0.9)
    with pytest.raises(grpc.RpcError) as refused:
        inference.stub.SetCascade(pb.SetCascadeRequest(model=model, cascade=cascade), timeout=60)
    error: Any = refused.value
    assert reason_of(error) == "NO_CASCADE"
