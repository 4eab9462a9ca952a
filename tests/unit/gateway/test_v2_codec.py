"""KServe V2 bodies: every element type there and back, as JSON and as binary."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as v2

from gateway.http.v2_bodies import described_message
from gateway.http.v2_codec import InferCall, message_json, read_infer, write_infer
from services.kit.errors import InvalidArgumentError

VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [-1.5, 0.25],
    "FP32": [-1.5, 1e30],
    "FP64": [-1.5, 1e300],
    "BYTES": ["", "好 text"],
}


def body(**request: Any) -> bytes:
    return json.dumps(request).encode()


def echo(call: InferCall) -> Any:
    """The inputs as outputs."""
    response = v2.ModelInferResponse(model_name="m", model_version="1", id=call.request.id)
    for tensor, raw in zip(call.request.inputs, call.request.raw_input_contents, strict=True):
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(raw)
    return response


@pytest.mark.parametrize("datatype", VALUES)
def test_json_there_and_back(datatype: str) -> None:
    values = VALUES[datatype]
    tensor = {"name": "X", "datatype": datatype, "shape": [1, 2], "data": [values]}
    call = read_infer(body(id="i", inputs=[tensor]), None, "m", "")
    content, size = write_infer(echo(call), call)
    assert size is None
    found = json.loads(content)
    assert found["id"] == "i"
    assert found["outputs"] == [{"name": "X", "datatype": datatype, "shape": [1, 2], "data": values}]


@pytest.mark.parametrize("datatype", VALUES)
def test_json_in_and_binary_out(datatype: str) -> None:
    tensor = {"name": "X", "datatype": datatype, "shape": [2], "data": VALUES[datatype]}
    call = read_infer(body(inputs=[tensor], parameters={"binary_data_output": True}), None, "m", "")
    content, size = write_infer(echo(call), call)
    assert size is not None
    head = json.loads(content[:size])
    assert head["outputs"][0]["parameters"]["binary_data_size"] == len(content) - size
    again = read_infer(content.replace(b'"outputs"', b'"inputs" ', 1), size, "m", "")
    assert again.request.raw_input_contents == call.request.raw_input_contents


@pytest.mark.parametrize("datatype", [name for name in VALUES if name != "FP16"])
def test_typed_contents_are_rendered_too(datatype: str) -> None:
    field = {
        "BOOL": "bool",
        "BYTES": "bytes",
        "FP32": "fp32",
        "FP64": "fp64",
        "INT64": "int64",
        "UINT64": "uint64",
    }.get(datatype, "uint" if datatype.startswith("U") else "int")
    values = [value.encode() if isinstance(value, str) else value for value in VALUES[datatype]]
    response = v2.ModelInferResponse(model_name="m")
    output = response.outputs.add(name="X", datatype=datatype, shape=[2])
    getattr(output.contents, f"{field}_contents").extend(values)
    rendered, _ = write_infer(response, InferCall(None, False, {}))
    expected = np.array(VALUES[datatype], dtype=np.float32).tolist() if datatype == "FP32" else VALUES[datatype]
    assert json.loads(rendered)["outputs"][0]["data"] == expected
    rendered, size = write_infer(response, InferCall(None, True, {}))
    tensor = {"name": "X", "datatype": datatype, "shape": [2], "data": VALUES[datatype]}
    assert rendered[size:] == read_infer(body(inputs=[tensor]), None, "m", "").request.raw_input_contents[0]


def test_parameters_keep_their_types() -> None:
    parameters = {"flag": False, "count": 3, "share": 0.5, "word": "w"}
    request = read_infer(body(inputs=[], parameters=parameters), None, "m", "7").request
    found = {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in request.parameters.items()}
    assert found == parameters
    assert type(found["flag"]) is bool
    assert request.model_version == "7"


def test_not_text_must_be_asked_as_binary() -> None:
    response = v2.ModelInferResponse(model_name="m", raw_output_contents=[b"\x01\x00\x00\x00\xff"])
    response.outputs.add(name="X", datatype="BYTES", shape=[1])
    with pytest.raises(InvalidArgumentError, match="binary"):
        write_infer(response, InferCall(None, False, {}))
    content, size = write_infer(response, InferCall(None, False, {"X": True}))
    assert content[size:] == b"\x01\x00\x00\x00\xff"


@given(st.binary(max_size=200), st.none() | st.integers(-1, 200))
def test_any_bytes_are_read_or_refused(data: bytes, size: int | None) -> None:
    with contextlib.suppress(InvalidArgumentError):
        read_infer(data, size, "m", "")


_TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=3) | st.integers(),
        "datatype": st.sampled_from([*VALUES, "BF16", "?"]),
        "shape": st.lists(st.integers(-1, 3) | st.floats(allow_nan=False), max_size=3) | st.none(),
        "data": st.lists(
            st.integers(-300, 300) | st.floats(allow_nan=False) | st.text(max_size=3) | st.none(), max_size=4
        ),
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "shared_memory_region", "x"]), st.integers() | st.none(), max_size=2
        ),
    },
)


@given(st.lists(_TENSOR, max_size=2), st.binary(max_size=16))
def test_any_tensors_are_read_or_refused(tensors: list[dict[str, Any]], tail: bytes) -> None:
    head = body(inputs=tensors)
    try:
        call = read_infer(head + tail, len(head), "m", "")
    except InvalidArgumentError:
        return
    assert len(call.request.inputs) == len(call.request.raw_input_contents) == len(tensors)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"datatype": "FP99"}, "inputs[0].datatype"),
        ({"shape": [2, -1]}, "inputs[0].shape[1]"),
        ({"shape": [True]}, "inputs[0].shape[0]"),
        ({"data": "text"}, "inputs[0].data"),
        ({"data": [1.5]}, "inputs[0].data"),
        ({"name": ""}, "inputs[0].name"),
        ({"parameters": {"x": None}}, "inputs[0].parameters.x"),
        ({"parameters": {"shared_memory_region": "r"}}, "inputs[0].parameters"),
    ],
)
def test_an_error_names_the_field(wrong: dict[str, Any], field: str) -> None:
    tensor = {"name": "X", "datatype": "INT8", "shape": [1], "data": [1], "unknown to this server": 1}
    assert read_infer(body(inputs=[tensor]), None, "m", "").request.inputs[0].name == "X"
    with pytest.raises(InvalidArgumentError) as refused:
        read_infer(body(inputs=[tensor | wrong]), None, "m", "")
    assert refused.value.violations[0].field == field


def test_counters_are_numbers_and_zeros_are_there() -> None:
    """As Triton's own HTTP door shows them; protobuf's JSON form has strings, and leaves zeros out."""
    found = v2.ModelStatisticsResponse()
    model = found.model_stats.add(name="m", version="1", inference_count=3)
    model.inference_stats.success.count = 2**40
    shown = message_json(found)["model_stats"][0]
    assert (shown["inference_count"], shown["execution_count"]) == (3, 0)
    assert shown["inference_stats"]["success"] == {"count": 2**40, "ns": 0}
    assert shown["batch_stats"] == []


def test_a_configuration_names_its_enumerations_and_keeps_its_maps() -> None:
    config = model_config_pb2.ModelConfig(name="m", max_batch_size=0)
    config.input.add(name="text", data_type=model_config_pb2.TYPE_STRING, dims=[-1])
    config.parameters["run"].string_value = "runs/r"
    shown = message_json(config)
    assert (shown["max_batch_size"], shown["input"][0]["data_type"], shown["input"][0]["dims"]) == (
        0,
        "TYPE_STRING",
        [-1],
    )
    assert shown["parameters"] == {"run": {"string_value": "runs/r"}}
    assert "optimization" not in shown


def test_what_is_described_is_what_is_rendered() -> None:
    """Triton's messages are declared once: their schema and their JSON form follow from the descriptor."""
    config = model_config_pb2.ModelConfig(name="m")
    config.input.add(name="text", data_type=model_config_pb2.TYPE_STRING, dims=[-1])
    config.parameters["run"].string_value = "runs/r"
    statistics = v2.ModelStatisticsResponse()
    statistics.model_stats.add(name="m", inference_count=3).batch_stats.add(batch_size=2)
    for message in (config, statistics):
        described = described_message(type(message))["responses"][200]["content"]["application/json"]["schema"]
        jsonschema.validate(message_json(message), closed(described))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(message_json(message) | {"unknown": 1}, closed(described))


def closed(schema: Any) -> Any:
    """The schema, without room for fields that it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(item) for key, item in schema.items()}
    return found | {"additionalProperties": False} if "properties" in found and "title" in found else found
