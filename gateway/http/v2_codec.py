"""Maps KServe V2's HTTP bodies to its gRPC messages and back, with the binary tensor data extension.

The bodies are declared in `v2_bodies`, which names the sources. It makes no call.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import orjson
from tritonclient.grpc import service_pb2 as v2

from gateway.http.bodies import read_body
from gateway.http.calls import invalid
from gateway.http.v2_bodies import InferAnswer, InferBody, OutputTensor, Parameters, TensorBody, rendered
from services.kit.errors import InternalError, InvalidArgumentError

# KServe's names of element types; BYTES is a length (4 bytes, little endian) before each element.
_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
# The field of typed contents, by data type.
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_SIZES = {**{name: dtype.itemsize for name, dtype in _DTYPES.items()}, "BF16": 2}


@dataclass(frozen=True, slots=True)
class InferCall:
    """A parsed request, and which outputs its caller wants as binary data."""

    request: Any
    """`inference.ModelInferRequest`."""
    binary_default: bool
    binary_outputs: dict[str, bool]

    def wants_binary(self, output: str) -> bool:
        """Whether an output follows the JSON part as binary data."""
        return self.binary_outputs.get(output, self.binary_default)


def read_infer(body: bytes | bytearray, json_size: int | None, model: str, version: str) -> InferCall:
    """Reads the body of an inference request.

    Args:
        body: JSON, followed by the binary tensors.
        json_size: length of the JSON part (`Inference-Header-Content-Length`); the whole body when None.
        model: name from the path.
        version: from the path; empty for the serving one.

    Raises:
        InvalidArgumentError: it breaks the protocol; the message says where.
    """
    if json_size is not None and not 0 <= json_size <= len(body):
        raise InvalidArgumentError(
            f"Inference-Header-Content-Length is {json_size}, the body has {len(body)} bytes.", reason="INVALID_HEADER"
        )
    try:
        head = orjson.loads(body[:json_size])
    except orjson.JSONDecodeError as error:
        raise InvalidArgumentError(f"The body's JSON part is not valid: {error}", reason="INVALID_JSON") from error
    if not isinstance(head, dict):
        raise InvalidArgumentError("The body's JSON part must be an object.", reason="INVALID_JSON")
    asked = read_body(InferBody, head)
    request = v2.ModelInferRequest(model_name=model, model_version=version, id=asked.id)
    binary_default = bool(_set_parameters(request.parameters, asked.parameters, "binary_data_output"))
    tail = memoryview(body)[len(body) if json_size is None else json_size :]
    used = 0
    for index, tensor in enumerate(asked.inputs):
        used += _read_input(request, tensor, f"inputs[{index}]", tail[used:])
    if used != len(tail):
        raise InvalidArgumentError(f"The inputs declare {used} bytes of binary data, the body has {len(tail)}.")
    binary_outputs: dict[str, bool] = {}
    for output in asked.outputs:
        wanted = _set_parameters(request.outputs.add(name=output.name).parameters, output.parameters, "binary_data")
        if wanted is not None:
            binary_outputs[output.name] = bool(wanted)
    return InferCall(request, binary_default, binary_outputs)


def _set_parameters(target: Any, parameters: Parameters, own: str) -> Any:
    """Sets all but one, which is the gateway's own; returns that one's value."""
    for name, value in parameters.items():
        if name == own:
            continue
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            target[name].int64_param = value
        elif isinstance(value, float):
            target[name].double_param = value
        else:
            target[name].string_param = value
    return parameters.get(own)


def _read_input(request: Any, tensor: TensorBody, where: str, tail: memoryview) -> int:
    """Adds one input; returns the number of binary bytes that it used."""
    added = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    size = _set_parameters(added.parameters, tensor.parameters, "binary_data_size")
    if size is None:
        raw = _raw_of_json(tensor, where)
    else:
        if type(size) is not int or not 0 <= size <= len(tail):
            raise invalid(
                where, f"`{where}` declares {size!r} bytes of binary data, but only {len(tail)} are left in the body."
            )
        if tensor.data is not None:
            raise invalid(f"{where}.data", f"`{where}` has both `data` and binary data.")
        raw = bytes(tail[:size])
    if (element := _SIZES.get(tensor.datatype)) is not None and len(raw) != (needed := prod(tensor.shape) * element):
        raise invalid(
            where, f"`{where}` has {len(raw)} bytes; shape {tensor.shape} of {tensor.datatype} needs {needed}."
        )
    request.raw_input_contents.append(raw)
    return size or 0


def _flatten(values: list[Any], dimensions: int) -> list[Any]:
    """The elements of a tensor, which may be nested as deep as it has dimensions; deeper lists stay lists."""
    for _ in range(dimensions - 1):
        if not values or not isinstance(values[0], list):
            break
        values = [item for part in values for item in (part if isinstance(part, list) else (part,))]
    return values


def _raw_of_json(tensor: TensorBody, where: str) -> bytes:
    if tensor.data is None:
        raise invalid(f"{where}.data", f"`{where}.data` is required.")
    datatype, elements = tensor.datatype, prod(tensor.shape)
    flat = _flatten(tensor.data, len(tensor.shape))
    if len(flat) != elements:
        raise invalid(f"{where}.data", f"`{where}.data` has {len(flat)} elements, its shape says {elements}.")
    if datatype == "BYTES":
        if not all(isinstance(item, str) for item in flat):
            raise invalid(f"{where}.data", f"`{where}.data` must contain strings.")
        return b"".join(_with_length(item.encode()) for item in flat)
    if datatype == "BF16":
        raise invalid(f"{where}.datatype", "BF16 has no JSON form; send it as binary data.")
    try:
        if datatype == "BOOL" and any(item not in (True, False) for item in flat):
            raise ValueError("an element is neither true nor false")
        if datatype != "BOOL" and any(isinstance(item, bool | str | list | dict) or item is None for item in flat):
            raise ValueError("an element is not a number")
        if not datatype.startswith("FP") and any(isinstance(item, float) for item in flat):
            raise ValueError("an element is not an integer")
        if flat and "INT" in datatype:
            bounds = np.iinfo(_DTYPES[datatype])
            if min(flat) < bounds.min or max(flat) > bounds.max:
                raise ValueError("an element is out of range")
        return np.array(flat, dtype=_DTYPES[datatype]).tobytes()
    except (ValueError, TypeError, OverflowError) as error:
        raise invalid(f"{where}.data", f"`{where}.data` does not fit {datatype}: {error}.") from error


def _with_length(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def write_infer(response: Any, call: InferCall) -> tuple[bytes, int | None]:
    """Renders an `inference.ModelInferResponse`.

    Returns:
        The body, and the length of its JSON part where binary tensors follow it, else None.
    """
    outputs: list[OutputTensor] = []
    tail: list[bytes] = []
    raws = response.raw_output_contents
    for index, output in enumerate(response.outputs):
        parameters, data = _parameters_json(output.parameters), None
        if call.wants_binary(output.name) or output.datatype == "BF16":
            raw = raws[index] if index < len(raws) else _raw_of_contents(output)
            parameters["binary_data_size"] = len(raw)
            tail.append(raw)
        else:
            data = _json_of_raw(raws[index], output) if index < len(raws) else _json_of_contents(output)
        outputs.append(
            OutputTensor(
                name=output.name,
                datatype=output.datatype,
                shape=list(output.shape),
                data=data,
                parameters=parameters or None,
            )
        )
    head = rendered(
        InferAnswer(
            model_name=response.model_name,
            model_version=response.model_version,
            id=response.id or None,
            parameters=_parameters_json(response.parameters) or None,
            outputs=outputs,
        )
    )
    return (b"".join((head, *tail)), len(head)) if tail else (head, None)


def _parameters_json(parameters: Any) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}


def _texts(elements: list[bytes], name: str) -> list[str]:
    try:
        return [element.decode() for element in elements]
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"The output {name} is not UTF-8 text; request it as binary data.", reason="NOT_TEXT"
        ) from error


def _json_of_raw(raw: bytes, output: Any) -> Any:
    if output.datatype != "BYTES":
        return np.frombuffer(raw, dtype=_DTYPES[output.datatype])
    elements: list[bytes] = []
    offset = 0
    while offset < len(raw):
        (size,) = struct.unpack_from("<I", raw, offset)
        elements.append(raw[offset + 4 : offset + 4 + size])
        offset += 4 + size
    return _texts(elements, output.name)


def _contents(output: Any) -> list[Any]:
    field = _CONTENTS.get(output.datatype)
    if field is None:
        raise InternalError(f"The output {output.name} of type {output.datatype} came without raw contents.")
    return list(getattr(output.contents, field))


def _json_of_contents(output: Any) -> Any:
    values = _contents(output)
    return _texts(values, output.name) if output.datatype == "BYTES" else values


def _raw_of_contents(output: Any) -> bytes:
    values = _contents(output)
    if output.datatype == "BYTES":
        return b"".join(_with_length(value) for value in values)
    return np.array(values, dtype=_DTYPES[output.datatype]).tobytes()


def message_json(message: Any) -> dict[str, Any]:
    """A message as Triton's own HTTP API renders it: with zeros, and with 64-bit numbers as numbers.

    protobuf's JSON form writes the latter as strings, which clients of Triton do not expect.
    """
    shown: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name["value"]
            shown[field.name] = {str(key): _field_json(entry, item) for key, item in value.items()}
        elif field.is_repeated:
            shown[field.name] = [_field_json(field, item) for item in value]
        else:
            shown[field.name] = _field_json(field, value)
    return shown


def _field_json(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return message_json(value)
    return field.enum_type.values_by_number[value].name if field.enum_type is not None else value
