"""The official `tritonclient` package over HTTP and gRPC against the gateway, unchanged."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.integration.gateway.conftest import Mesh

TEXTS = np.array([["多好的酒店".encode(), b"bad \x01 one"]], dtype=np.object_)
FLOATS = np.array([[1.5, -2.25], [0.0, 3e38]], dtype=np.float32)


def test_http_binary_is_the_default_and_comes_back_bit_by_bit(mesh: Mesh) -> None:
    client = triton_http.InferenceServerClient(mesh.http)
    headers = {"authorization": f"Bearer {mesh.key}"}
    inputs = [triton_http.InferInput("TEXT", [1, 2], "BYTES"), triton_http.InferInput("X", [2, 2], "FP32")]
    inputs[0].set_data_from_numpy(TEXTS)
    inputs[1].set_data_from_numpy(FLOATS)
    result = client.infer("echo", inputs, headers=headers, request_id="r1")
    assert result.get_response()["id"] == "r1"
    assert result.as_numpy("OUT_TEXT").tolist() == TEXTS.tolist()
    assert np.array_equal(result.as_numpy("OUT_X"), FLOATS)
    client.close()


def test_http_json_tensors_and_mixed_outputs(mesh: Mesh) -> None:
    client = triton_http.InferenceServerClient(mesh.http)
    text = triton_http.InferInput("TEXT", [1], "BYTES")
    text.set_data_from_numpy(np.array(["好".encode()], dtype=np.object_), binary_data=False)
    numbers = triton_http.InferInput("X", [2, 2], "FP32")
    numbers.set_data_from_numpy(FLOATS, binary_data=False)
    outputs = [
        triton_http.InferRequestedOutput("OUT_TEXT", binary_data=False),
        triton_http.InferRequestedOutput("OUT_X", binary_data=True),
    ]
    result = client.infer("echo", [text, numbers], outputs=outputs, headers={"x-api-key": mesh.key})
    assert result.as_numpy("OUT_TEXT").tolist() == ["好"]
    assert np.array_equal(result.as_numpy("OUT_X"), FLOATS)
    assert result.get_output("OUT_TEXT")["data"] == ["好"]
    client.close()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_http_compressed_bodies(mesh: Mesh, algorithm: str) -> None:
    client = triton_http.InferenceServerClient(mesh.http)
    numbers = triton_http.InferInput("X", [2, 2], "FP32")
    numbers.set_data_from_numpy(FLOATS)
    result = client.infer("echo", [numbers], headers={"x-api-key": mesh.key}, request_compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("OUT_X"), FLOATS)
    client.close()


def test_http_health_and_metadata(mesh: Mesh) -> None:
    client = triton_http.InferenceServerClient(mesh.http)
    headers = {"x-api-key": mesh.key}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo", headers=headers)
    assert not client.is_model_ready("nothing", headers=headers)
    assert "binary_tensor_data" in client.get_server_metadata(headers=headers)["extensions"]
    assert client.get_model_metadata("echo", headers=headers)["inputs"][0]["datatype"] == "BYTES"
    assert client.get_model_config("echo", headers=headers)["name"] == "echo"
    numbers = triton_http.InferInput("X", [2, 2], "FP32")
    numbers.set_data_from_numpy(FLOATS)
    with pytest.raises(InferenceServerException, match=r"\[400\] The model writer answers in a stream"):
        client.infer("writer", [numbers], headers=headers)
    with pytest.raises(InferenceServerException, match="No version of models/nothing is published"):
        client.get_model_metadata("nothing", headers=headers)
    with pytest.raises(InferenceServerException, match="no API key"):
        client.get_model_metadata("echo")
    client.close()


def test_grpc(mesh: Mesh) -> None:
    client = triton_grpc.InferenceServerClient(mesh.grpc)
    headers = {"authorization": f"Bearer {mesh.key}"}
    numbers = triton_grpc.InferInput("X", [2, 2], "FP32")
    numbers.set_data_from_numpy(FLOATS)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo", headers=headers)
    result = client.infer("echo", [numbers], headers=headers)
    assert np.array_equal(result.as_numpy("OUT_X"), FLOATS)
    with pytest.raises(InferenceServerException, match="No version of models/nothing is published"):
        client.infer("nothing", [numbers], headers=headers)
    with pytest.raises(InferenceServerException, match="no API key"):
        client.infer("echo", [numbers])
    client.close()


def test_grpc_stream(mesh: Mesh) -> None:
    client = triton_grpc.InferenceServerClient(mesh.grpc)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(
        lambda result, error: answers.put((result, error)), headers={"authorization": f"Bearer {mesh.key}"}
    )
    numbers = triton_grpc.InferInput("X", [2, 2], "FP32")
    numbers.set_data_from_numpy(FLOATS)
    client.async_stream_infer("echo", [numbers])
    result, error = answers.get(timeout=30)
    assert error is None
    assert np.array_equal(result.as_numpy("OUT_X"), FLOATS)
    client.stop_stream()
    client.close()
