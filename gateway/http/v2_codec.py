"""Maps KServe V2's HTTP bodies to its gRPC messages and back, with the binary tensor data extension.

Sources: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md. It makes no call.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import orjson
from tritonclient.grpc import service_pb2 as v2

from gateway.http.calls import invalid
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
# The limit of NumPy 1; without a limit the number of elements could be arbitrarily large.
_MAX_DIMENSIONS = 32
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
    request = v2.ModelInferRequest(model_name=model, model_version=version, id=str(head.get("id") or ""))
    parameters = dict(_object(head.get("parameters"), "parameters"))
    binary_default = bool(parameters.pop("binary_data_output", False))
    _set_parameters(request.parameters, parameters, "parameters")
    tail = memoryview(body)[len(body) if json_size is None else json_size :]
    used = 0
    for index, tensor in enumerate(_list(head.get("inputs"), "inputs")):
        used += _read_input(request, tensor, f"inputs[{index}]", tail[used:])
    if used != len(tail):
        raise InvalidArgumentError(f"The inputs declare {used} bytes of binary data, the body has {len(tail)}.")
    binary_outputs: dict[str, bool] = {}
    for index, output in enumerate(_list(head.get("outputs", []), "outputs")):
        where = f"outputs[{index}]"
        name = _object(output, where).get("name")
        if not isinstance(name, str):
            raise invalid(f"{where}.name", f"`{where}.name` is required.")
        options = dict(_object(output.get("parameters"), f"{where}.parameters"))
        if "binary_data" in options:
            binary_outputs[name] = bool(options.pop("binary_data"))
        _set_parameters(request.outputs.add(name=name).parameters, options, f"{where}.parameters")
    return InferCall(request, binary_default, binary_outputs)


def _object(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(where, f"`{where}` must be an object.")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(where, f"`{where}` must be a list.")
    return value


def _set_parameters(target: Any, values: dict[str, Any], where: str) -> None:
    for name, value in values.items():
        if name.startswith("shared_memory"):
            raise invalid(where, "Shared memory is not supported over HTTP; send the tensors in the body.")
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            target[name].int64_param = value
        elif isinstance(value, float):
            target[name].double_param = value
        elif isinstance(value, str):
            target[name].string_param = value
        else:
            raise invalid(where, f"`{where}.{name}` must be a string, a number or a boolean.")


def _read_input(request: Any, tensor: Any, where: str, tail: memoryview) -> int:
    """Adds one input; returns the number of binary bytes that it used."""
    entry = _object(tensor, where)
    name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
    if not isinstance(name, str) or not name:
        raise invalid(f"{where}.name", f"`{where}.name` is required.")
    if not isinstance(datatype, str) or (datatype not in _SIZES and datatype != "BYTES"):
        raise invalid(f"{where}.datatype", f"`{where}.datatype` must be one of {', '.join((*_SIZES, 'BYTES'))}.")
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 2**31 for size in shape)
    ):
        raise invalid(f"{where}.shape", f"`{where}.shape` must be a list of at most {_MAX_DIMENSIONS} sizes.")
    options = dict(_object(entry.get("parameters"), f"{where}.parameters"))
    size = options.pop("binary_data_size", None)
    elements = prod(shape)
    if size is None:
        raw = _raw_of_json(entry.get("data"), datatype, shape, where)
    else:
        if type(size) is not int or not 0 <= size <= len(tail):
            raise invalid(
                where, f"`{where}` declares {size!r} bytes of binary data, but only {len(tail)} are left in the body."
            )
        if "data" in entry:
            raise invalid(f"{where}.data", f"`{where}` has both `data` and binary data.")
        raw = bytes(tail[:size])
    if datatype in _SIZES and len(raw) != elements * _SIZES[datatype]:
        raise invalid(
            where,
            f"`{where}` has {len(raw)} bytes; shape {shape} of {datatype} needs {elements * _SIZES[datatype]}.",
        )
    added = request.inputs.add(name=name, datatype=datatype, shape=shape)
    _set_parameters(added.parameters, options, f"{where}.parameters")
    request.raw_input_contents.append(raw)
    return size or 0


def _flatten(values: list[Any], dimensions: int) -> list[Any]:
    """The elements of a tensor, which may be nested as deep as it has dimensions; deeper lists stay lists."""
    for _ in range(dimensions - 1):
        if not values or not isinstance(values[0], list):
            break
        values = [item for part in values for item in (part if isinstance(part, list) else (part,))]
    return values


def _raw_of_json(data: Any, datatype: str, shape: list[int], where: str) -> bytes:
    if not isinstance(data, list):
        raise invalid(f"{where}.data", f"`{where}.data` must be a list.")
    flat, elements = _flatten(data, len(shape)), prod(shape)
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
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    raws = response.raw_output_contents
    for index, output in enumerate(response.outputs):
        entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        parameters = _parameters_json(output.parameters)
        if call.wants_binary(output.name) or output.datatype == "BF16":
            raw = raws[index] if index < len(raws) else _raw_of_contents(output)
            parameters["binary_data_size"] = len(raw)
            tail.append(raw)
        else:
            entry["data"] = _json_of_raw(raws[index], output) if index < len(raws) else _json_of_contents(output)
        if parameters:
            entry["parameters"] = parameters
        outputs.append(entry)
    head: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        head["id"] = response.id
    if parameters := _parameters_json(response.parameters):
        head["parameters"] = parameters
    head["outputs"] = outputs
    rendered = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((rendered, *tail)), len(rendered)) if tail else (rendered, None)


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
