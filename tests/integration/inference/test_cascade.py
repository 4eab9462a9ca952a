"""A small and a larger classifier, through the doors and through restarts."""

from __future__ import annotations

import re
from typing import Any

import grpc
import httpx
import pytest
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import route_pb2

from services.kit.ids import new_id
from tests.integration.inference.conftest import Builds, InferenceProcess
from tests.integration.inference.test_routes import SERVING, route_of, set_route
from tests.integration.inference.test_service import reason_of

pytestmark = pytest.mark.real

# The small model knows these words, and has never seen the other.
TEXTS = ["good", "curious good bad", "bad"]


def set_cascade(inference: InferenceProcess, model: str, larger: str = "", **options: Any) -> Any:
    """Sets the larger model; none when empty."""
    etag = options.pop("etag", "")
    request = pb.SetCascadeRequest(request_id=new_id(), model=f"models/{model}", etag=etag)
    if larger:
        request.cascade.CopyFrom(route_pb2.Cascade(model=f"models/{larger}", **options))
    return inference.stub.SetCascade(request, timeout=30).route


def answered(inference: InferenceProcess, model: str) -> list[tuple[str, str]]:
    """Which model answered each text, and with which label."""
    found = inference.stub.Predict(pb.PredictRequest(model=f"models/{model}", texts=TEXTS), timeout=30)
    assert found.model_version == f"models/{model}/versions/1"
    return [(item.model_version.split("/")[1], item.label) for item in found.predictions]


def test_an_unsure_classifier_asks_the_larger_one(inference: InferenceProcess, builds: Builds, model: str) -> None:
    small, larger = f"{model}-s", f"{model}-l"
    inference.publish(small, builds.positive)
    inference.publish(larger, builds.turned)
    alone = [(small, "positive"), (small, "negative"), (small, "negative")]
    assert answered(inference, small) == alone
    set_cascade(inference, small, larger, min_confidence=0.8)
    cascaded = [(small, "positive"), (larger, "negative"), (small, "negative")]
    assert answered(inference, small) == cascaded

    # Over HTTP each prediction says it, too, and a version that is named answers alone.
    url = f"http://127.0.0.1:{inference.http}/v1/predict"
    found = httpx.post(url, json={"model": small, "texts": TEXTS}).json()
    assert [item["model_version"].split("/")[1] for item in found["predictions"]] == [who for who, _ in cascaded]
    named = httpx.post(url, json={"model": f"{small}/versions/1", "texts": TEXTS}).json()
    assert {item["model_version"].split("/")[1] for item in named["predictions"]} == {small}

    # Changes of versions leave it; each answer of the larger model can be judged.
    set_route(inference, small, (1, SERVING, 50))
    assert route_of(inference, small).cascade.model == f"models/{larger}"
    metrics = httpx.get(f"http://127.0.0.1:{inference.http}/metrics").text
    asked = [line for line in metrics.splitlines() if line.startswith("cascade_texts_total{") and small in line]
    assert {(re.findall('outcome="([a-z]+)"', line)[0], float(line.split()[-1])) for line in asked} == {
        ("kept", 4.0),
        ("asked", 2.0),
    }

    inference.stub.UnpublishModel(pb.UnpublishModelRequest(model=f"models/{larger}"), timeout=60)
    assert answered(inference, small) == alone
    inference.stub.RollBackModel(pb.RollBackModelRequest(model=f"models/{larger}", version=1), timeout=120)
    assert answered(inference, small) == cascaded
    set_cascade(inference, small)
    assert answered(inference, small) == alone
    assert not route_of(inference, small).HasField("cascade")


def test_a_pair_that_does_not_fit_is_refused(inference: InferenceProcess, builds: Builds, model: str) -> None:
    inference.publish(model, builds.positive)
    inference.publish("test-cascade-writer", builds.writer)
    code = grpc.StatusCode
    refused: list[tuple[str, dict[str, Any], grpc.StatusCode, str]] = [
        ("no-such-model", {"min_confidence": 0.8}, code.NOT_FOUND, "MODEL_NOT_FOUND"),
        (model, {"min_confidence": 0.8}, code.FAILED_PRECONDITION, "NO_CASCADE"),
        ("test-cascade-writer", {"min_confidence": 0.8}, code.FAILED_PRECONDITION, "NO_CASCADE"),
        (model, {"min_confidence": 0.0}, code.INVALID_ARGUMENT, "INVALID_FIELD"),
        (model, {"min_confidence": 1.1}, code.INVALID_ARGUMENT, "INVALID_FIELD"),
        (model, {"min_confidence": float("nan")}, code.INVALID_ARGUMENT, "INVALID_FIELD"),
        (model, {"min_confidence": 0.8, "temperature": -1.0}, code.INVALID_ARGUMENT, "INVALID_FIELD"),
        (model, {"min_confidence": 0.8, "etag": "0"}, code.ABORTED, "ROUTE_CHANGED"),
    ]
    for larger, options, expected, reason in refused:
        with pytest.raises(grpc.RpcError) as found:
            set_cascade(inference, model, larger, **options)
        assert (found.value.code(), reason_of(found.value)) == (expected, reason), (larger, options)
    assert not route_of(inference, model).HasField("cascade")
