"""KServe V2 point by point, over HTTP and gRPC, on a real Triton.

Each row quotes what the protocol demands: https://github.com/kserve/open-inference-protocol, specification/protocol,
`inference_rest.md` (R) and `inference_grpc.proto` (G); extensions are Triton's, docs/protocol (E).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as v2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.integration.inference.conftest import Builds, InferenceProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.real

TEXT = {"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": ["good room", "bad"]}
_WITHOUT_DATA = {key: TEXT[key] for key in ("name", "shape", "datatype")}
OUTPUTS = ["label", "score", "scores", "prompt_tokens", "truncated_tokens", "embedding"]


@dataclass
class Doors:
    """Both doors, and a classifier with one version, and a model that writes."""

    http: httpx.Client
    grpc: Any
    model: str
    writer: str

    def infer(self, path: str = "", **body: Any) -> httpx.Response:
        """Over HTTP."""
        return self.http.post(f"/v2/models/{self.model}{path}/infer", json={"inputs": [TEXT], **body})

    def call(self, **fields: Any) -> Any:
        """ModelInfer."""
        request = v2.ModelInferRequest(model_name=self.model, **fields)
        request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
        request.inputs[0].contents.bytes_contents.append(b"good room")
        return self.grpc.ModelInfer(request, timeout=30)


@pytest.fixture(scope="module")
def doors(inference: InferenceProcess, builds: Builds, caller: str) -> Iterator[Doors]:
    model = str(inference.publish("test-v2", builds.positive).model_version.name.split("/")[1])
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{inference.http}", timeout=60) as http,
        grpc.insecure_channel(f"127.0.0.1:{inference.port}") as channel,
    ):
        yield Doors(http, GRPCInferenceServiceStub(channel), model, caller)


def _error(response: httpx.Response, low: int = 400, high: int = 500) -> None:
    """`$inference_error_response = { "error": string }`."""
    assert low <= response.status_code < high, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert isinstance(body["error"], str)
    assert body["error"]


def live(d: Doors) -> None:
    answer = d.http.get("/v2/health/live")
    assert (answer.status_code, answer.json()) == (200, {"live": True})
    assert d.grpc.ServerLive(v2.ServerLiveRequest(), timeout=10).live


def ready(d: Doors) -> None:
    answer = d.http.get("/v2/health/ready")
    assert (answer.status_code, answer.json()) == (200, {"ready": True})
    assert d.grpc.ServerReady(v2.ServerReadyRequest(), timeout=10).ready


def model_ready(d: Doors) -> None:
    for path in (f"/v2/models/{d.model}/ready", f"/v2/models/{d.model}/versions/1/ready"):
        answer = d.http.get(path)
        assert (answer.status_code, answer.json()) == (200, {"name": d.model, "ready": True})
    assert d.grpc.ModelReady(v2.ModelReadyRequest(name=d.model, version="1"), timeout=10).ready


def not_ready(d: Doors) -> None:
    for path in ("nothing", f"{d.model}/versions/9", f"{d.model}/versions/x"):
        answer = d.http.get(f"/v2/models/{path}/ready")
        assert 400 <= answer.status_code < 500
        assert answer.json()["ready"] is False
    assert not d.grpc.ModelReady(v2.ModelReadyRequest(name="nothing"), timeout=10).ready


def server_metadata(d: Doors) -> None:
    body, found = d.http.get("/v2").json(), d.grpc.ServerMetadata(v2.ServerMetadataRequest(), timeout=10)
    assert body == {"name": found.name, "version": found.version, "extensions": list(found.extensions)}
    assert body["name"]
    assert body["version"]


def model_metadata(d: Doors) -> None:
    for path in ("", "/versions/1"):
        body = d.http.get(f"/v2/models/{d.model}{path}").json()
        assert body.keys() == {"name", "versions", "platform", "inputs", "outputs"}
        assert (body["name"], body["versions"]) == (d.model, ["1"])
        assert body["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}]
        assert [output["name"] for output in body["outputs"]] == OUTPUTS
    found = d.grpc.ModelMetadata(v2.ModelMetadataRequest(name=d.model), timeout=10)
    assert [output.name for output in found.outputs] == OUTPUTS


def no_such_model(d: Doors) -> None:
    for path in ("nothing", f"{d.model}/versions/9"):
        _error(d.http.get(f"/v2/models/{path}"))
        _error(d.http.post(f"/v2/models/{path}/infer", json={"inputs": [TEXT]}))
    with pytest.raises(grpc.RpcError) as caught:
        d.grpc.ModelMetadata(v2.ModelMetadataRequest(name="nothing"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def infer(d: Doors) -> None:
    for path in ("", "/versions/1"):
        body = d.infer(path).json()
        assert (body["model_name"], body["model_version"]) == (d.model, "1")
        label = body["outputs"][0]
        assert label == {"name": "label", "shape": [2, 1], "datatype": "BYTES", "data": ["positive", "negative"]}
    assert d.call().raw_output_contents[0] == b"\x08\0\0\0positive"


def identifier(d: Doors) -> None:
    assert d.infer(id="mine").json()["id"] == "mine"
    assert "id" not in d.infer().json()
    assert d.call(id="mine").id == "mine"


def all_outputs(d: Doors) -> None:
    assert [output["name"] for output in d.infer().json()["outputs"]] == OUTPUTS
    assert [output.name for output in d.call().outputs] == OUTPUTS


def some_outputs(d: Doors) -> None:
    body = d.infer(outputs=[{"name": "score"}, {"name": "label"}]).json()
    assert {output["name"] for output in body["outputs"]} == {"score", "label"}
    _error(d.infer(outputs=[{"name": "colour"}]))


def nested(d: Doors) -> None:
    flat = d.infer().json()["outputs"]
    assert d.infer(inputs=[{**TEXT, "data": [["good room"], ["bad"]]}]).json()["outputs"] == flat
    _error(d.infer(inputs=[{**TEXT, "data": ["good room"]}]))
    _error(d.infer(inputs=[{**TEXT, "shape": [3, 1]}]))


def row_major(d: Doors) -> None:
    scores = next(output for output in d.infer().json()["outputs"] if output["name"] == "scores")
    assert (scores["datatype"], scores["shape"], len(scores["data"])) == ("FP32", [2, 2], 4)
    assert scores["data"][0] + scores["data"][1] == pytest.approx(1)


def parameters(d: Doors) -> None:
    assert d.infer(parameters={"a": "b", "c": 1, "d": True}).status_code == 200
    _error(d.infer(parameters={"a": {"b": 1}}))
    _error(d.infer(inputs=[{**TEXT, "parameters": {"a": [1]}}]))


def bad_requests(d: Doors) -> None:
    for body in (b"{", b"[]", b"{}", json.dumps({"inputs": [{"name": "text"}]}).encode()):
        _error(d.http.post(f"/v2/models/{d.model}/infer", content=body))
    _error(d.infer(inputs=[{**TEXT, "name": "colour"}]))
    _error(d.infer(inputs=[{"name": "text", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]))
    _error(d.http.get("/v2/nothing"))
    _error(d.http.get(f"/v2/models/{d.model}/infer"))


def not_text(d: Doors) -> None:
    raw = b"\x01\0\0\0\xff"
    head = json.dumps({"inputs": [{**_WITHOUT_DATA, "shape": [1, 1], "parameters": {"binary_data_size": 5}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    request = v2.ModelInferRequest(model_name=d.model, raw_input_contents=[raw])
    request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
    for _ in range(2):  # a cache would answer the second one
        answer = d.http.post(f"/v2/models/{d.model}/infer", content=head + raw, headers=headers)
        _error(answer, 400, 401)
        assert answer.json()["error"].startswith("inputs[text][0] is not UTF-8 text")
        with pytest.raises(grpc.RpcError, match=r"inputs\[text\]\[0\] is not UTF-8 text") as caught:
            d.grpc.ModelInfer(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def raw_contents(d: Doors) -> None:
    request = v2.ModelInferRequest(model_name=d.model, raw_input_contents=[b"\x03\0\0\0bad"])
    request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
    assert d.grpc.ModelInfer(request, timeout=30).raw_output_contents[0] == b"\x08\0\0\0negative"


def binary_data(d: Doors) -> None:
    raw = b"".join(len(text).to_bytes(4, "little") + text for text in (b"good room", b"bad"))
    tensor = {**_WITHOUT_DATA, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps(
        {"inputs": [tensor], "outputs": [{"name": "scores", "parameters": {"binary_data": True}}]}
    ).encode()
    answer = d.http.post(
        f"/v2/models/{d.model}/infer",
        content=head + raw,
        headers={"Inference-Header-Content-Length": str(len(head)), "content-type": "application/octet-stream"},
    )
    size = int(answer.headers["Inference-Header-Content-Length"])
    [output] = json.loads(answer.content[:size])["outputs"]
    assert "data" not in output
    assert output["parameters"] == {"binary_data_size": 16}
    values = np.frombuffer(answer.content[size:], "<f4")
    assert values.reshape(2, 2).sum(axis=1) == pytest.approx([1, 1])


def configuration(d: Doors) -> None:
    for path in ("", "/versions/1"):
        found = d.http.get(f"/v2/models/{d.model}{path}/config").json()
        assert found["name"] == d.model
        assert [item["name"] for item in found["input"]] == ["text"]
    assert d.grpc.ModelConfig(v2.ModelConfigRequest(name=d.model), timeout=10).config.name == d.model


def statistics(d: Doors) -> None:
    def count() -> int:
        [found] = d.http.get(f"/v2/models/{d.model}/versions/1/stats").json()["model_stats"]
        assert (found["name"], found["version"]) == (d.model, "1")
        assert found["inference_stats"].keys() >= {"success", "fail", "queue", "compute_input", "compute_infer"}
        assert found["inference_stats"]["success"].keys() == {"count", "ns"}
        return int(found["inference_count"])

    before = count()
    d.infer()
    # Triton counts after it has answered.
    wait_until(lambda: count() == before + 2, "the count of two texts")
    names = [item["name"] for item in d.http.get("/v2/models/stats").json()["model_stats"]]
    assert {d.model, d.writer} <= set(names)
    [found] = d.grpc.ModelStatistics(v2.ModelStatisticsRequest(name=d.model), timeout=10).model_stats
    assert found.inference_count == before + 2
    _error(d.http.get("/v2/models/nothing/stats"))


def extensions(d: Doors) -> None:
    assert d.http.get("/v2").json()["extensions"] == ["binary_tensor_data", "model_configuration", "statistics"]
    for path in ("repository/index", "systemsharedmemory/status", "trace/setting", "logging"):
        for method in ("GET", "POST"):
            _error(d.http.request(method, f"/v2/{path}"))
    for request in (v2.RepositoryIndexRequest(), v2.TraceSettingRequest(), v2.SystemSharedMemoryStatusRequest()):
        name = type(request).__name__.removesuffix("Request")
        with pytest.raises(grpc.RpcError) as caught:
            getattr(d.grpc, name)(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    _error(d.infer(inputs=[{**TEXT, "parameters": {"shared_memory_region": "r"}}]))


def streams(d: Doors) -> None:
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hi"]}]}
    _error(d.http.post(f"/v2/models/{d.writer}/infer", json=body))
    request = v2.ModelInferRequest(model_name=d.writer, id="s")
    request.inputs.add(name="text", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(b"\x02\0\0\0hi")
    answers = [answer.infer_response for answer in d.grpc.ModelStreamInfer(iter([request]), timeout=60)]
    assert {answer.id for answer in answers if answer.outputs} == {"s"}


POINTS: list[tuple[str, Callable[[Doors], None]]] = [
    ("R: v2/health/live is 200 with `live`; G: ServerLive", live),
    ("R: v2/health/ready is 200 with `ready`; G: ServerReady", ready),
    ("R: v2/models/M[/versions/V]/ready is 200 with `name` and `ready`; G: ModelReady", model_ready),
    ("R: a model that is not ready is a 4xx", not_ready),
    ("R: v2 has `name`, `version` and `extensions`; G: ServerMetadata says the same", server_metadata),
    ("R: v2/models/M[/versions/V] has name, versions, platform, inputs, outputs; G: ModelMetadata", model_metadata),
    ("R: a failed request is a 4xx with `error`", no_such_model),
    ("R: infer answers with model_name, model_version and outputs; G: ModelInfer", infer),
    ("R: an `id` of the request is that of the response, and there is none otherwise", identifier),
    ("R: without `outputs` all outputs are returned", all_outputs),
    ("R: `outputs` names those that are returned", some_outputs),
    ("R: `data` is flat or nested, and must match the shape", nested),
    ("R: tensors are in row-major order", row_major),
    ("R: parameters are strings, numbers and booleans", parameters),
    ("R: a request that breaks the protocol is a 4xx with `error`", bad_requests),
    ("R: a BYTES element of JSON is a string; bytes that are not text are refused each time", not_text),
    ("G: raw_input_contents in place of typed contents", raw_contents),
    ("E: binary_tensor_data: inputs and outputs behind the JSON, with their sizes", binary_data),
    ("E: model_configuration", configuration),
    ("E: statistics of a version, a model and all models", statistics),
    ("R: `extensions` lists what is implemented, and what is not is refused", extensions),
    ("G: ModelStreamInfer for models that answer in pieces; infer says where to ask", streams),
]


@pytest.mark.parametrize("check", [row[1] for row in POINTS], ids=[row[0] for row in POINTS])
def test_what_the_protocol_demands(doors: Doors, check: Callable[[Doors], None]) -> None:
    check(doors)
