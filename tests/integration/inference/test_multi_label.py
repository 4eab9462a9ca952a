"""A model that assigns several labels, trained, published and asked at the doors."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow.parquet as pq
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
_MODEL = "models/test-labeller"


@dataclass(frozen=True, slots=True)
class Answered:
    """Texts of the hold-out of a run, and the labels that its int8 build assigned to each in the run."""

    texts: list[str]
    labels: list[set[str]]


@pytest.fixture(scope="module")
def answered(inference: InferenceProcess, builds: Builds) -> Answered:
    """Answers of a model of praise, complaints and repetitions; it is published, and Triton was asked its probes."""
    folder = builds.root / "labeller"
    task = MultiLabelClassificationTask("labels", 32, calibration_share=0.2)
    snapshot = write_tagged(folder / "tagged")
    report = work(folder, labeller_spec(make_encoder(folder / "bert"), snapshot, task))
    build = folder / "variants" / "int8"
    signing_key(builds.root).sign(build)
    digest = next(variant.digest for variant in report.variants if variant.precision == "int8")
    inference.publish("test-labeller", BuildFolder(build, digest))
    return _chosen(snapshot, folder / "eval" / "builds.json")


def _chosen(snapshot: Path, kept: Path) -> Answered:
    """The first text with two labels, with one, and, if there is one, with none, as the build answered in the run."""
    rows = pq.read_table(snapshot / "holdout.parquet").to_pylist()
    answers = json.loads(kept.read_text())["int8"]["answers"]
    by_count: dict[int, tuple[str, set[str]]] = {}
    for row, labels in zip(rows, answers, strict=True):
        by_count.setdefault(len(labels), (row["text"], set(labels)))
    assert by_count.keys() >= {1, 2}
    picked = [by_count[count] for count in (2, 1, 0) if count in by_count]
    return Answered([text for text, _ in picked], [labels for _, labels in picked])


def test_a_text_has_the_labels_that_the_build_gave_it_in_the_run(
    inference: InferenceProcess, answered: Answered
) -> None:
    answer = inference.stub.Predict(pb.PredictRequest(model=_MODEL, texts=answered.texts), timeout=60)
    assert [set(found.labels) for found in answer.predictions] == answered.labels
    for found in answer.predictions:
        assert found.label == ""
        assert set(found.scores) == {"complaint", "praise", "repeated"}
        assert {label for label, score in found.scores.items() if score >= 0.5} == set(found.labels)
        scores = [found.scores[label] for label in found.labels]
        assert scores == sorted(scores, reverse=True)


def test_the_http_door_gives_the_same(inference: InferenceProcess, answered: Answered) -> None:
    body = json.dumps({"model": "test-labeller", "texts": answered.texts}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{inference.http}/v1/predict", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert [set(found["labels"]) for found in json.load(response)["predictions"]] == answered.labels


def test_a_client_of_kserve_v2_gets_the_labels_as_json(inference: InferenceProcess, answered: Answered) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{inference.port}") as client:
        tensor = triton.InferInput("text", [len(answered.texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in answered.texts], dtype=np.object_))
        outputs = [triton.InferRequestedOutput(name) for name in ("labels_json", "scores")]
        found = client.infer("test-labeller", [tensor], outputs=outputs)
    assert [set(json.loads(labels)) for labels in found.as_numpy("labels_json").reshape(-1)] == answered.labels
    assert found.as_numpy("scores").shape == (len(answered.texts), 3)


def test_a_build_that_assigns_other_labels_is_refused(inference: InferenceProcess, builds: Builds) -> None:
    folder = builds.root / "labels-turned"
    probes = Probes(("good room", "bad"), ('["positive"]', '["negative"]'))
    digest = make_classifier(folder, weight=-2.0, task="multi_label_classification", probes=probes)
    with pytest.raises(grpc.RpcError) as refused:
        inference.publish("test-labels-turned", BuildFolder(folder, digest))
    error: Any = refused.value
    assert reason_of(error) == "ANSWERS_DIFFER"


@pytest.mark.usefixtures("answered")
def test_such_a_model_has_no_cascade(inference: InferenceProcess, builds: Builds) -> None:
    folder = builds.root / "larger"
    inference.publish("test-larger", BuildFolder(folder, make_classifier(folder)))
    cascade = route_pb2.Cascade(model="models/test-larger", min_confidence=0.9)
    with pytest.raises(grpc.RpcError) as refused:
        inference.stub.SetCascade(pb.SetCascadeRequest(model=_MODEL, cascade=cascade), timeout=60)
    error: Any = refused.value
    assert reason_of(error) == "NO_CASCADE"
