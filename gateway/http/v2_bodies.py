"""Bodies of KServe V2 over HTTP: requests and answers, each declared once.

Sources: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md. What Triton adds to
the protocol, a model's configuration and statistics, is declared by its protobuf messages (`described_message`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from gateway.http.bodies import Body

DataType = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]
# The limit of NumPy 1; without a limit the number of elements could be arbitrarily large.
_MAX_DIMENSIONS = 32


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) else value


def _parameter(value: Any) -> Any:
    if not isinstance(value, str | float | bool) and not (isinstance(value, int) and -(2**63) <= value < 2**63):
        raise PydanticCustomError("parameter", "must be a string, a number or a boolean")
    return value


def _elements(value: Any) -> Any:
    # The elements are read with the tensor's type: there may be millions.
    if not isinstance(value, list):
        raise PydanticCustomError("data", "must be a list")
    return value


Parameter = Annotated[
    Any,
    BeforeValidator(_parameter),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]}),
]
Parameters = dict[str, Parameter]
Data = Annotated[Any, WithJsonSchema({"type": "array", "items": {}})]
Shape = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]],
    Field(max_length=_MAX_DIMENSIONS),
]


class _Sent(Body):
    """What a caller sends. The protocol lets clients send fields that a server does not know."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    parameters: Parameters = Field(default_factory=dict)

    @model_validator(mode="after")
    def _no_shared_memory(self) -> _Sent:
        if any(name.startswith("shared_memory") for name in self.parameters):
            raise PydanticCustomError(
                "shared_memory",
                "has shared memory, which is not supported over HTTP; send the tensors in the body",
                {"at": "parameters"},
            )
        return self


class TensorBody(_Sent):
    """A tensor of a request; its parameter `binary_data_size` says how many bytes of it follow the JSON."""

    name: str = Field(min_length=1)
    shape: Shape
    datatype: DataType = Field(examples=["BYTES"])
    data: Annotated[Data, BeforeValidator(_elements)] = Field(
        None, description="row-major; absent with the binary tensor data extension"
    )


class OutputBody(_Sent):
    """An output that is asked for; with its parameter `binary_data` it follows the JSON as bytes."""

    name: str


class InferBody(_Sent):
    """Body of infer; with its parameter `binary_data_output` all outputs follow the JSON as bytes."""

    id: Annotated[str, BeforeValidator(_text)] = ""
    inputs: list[TensorBody]
    outputs: list[OutputBody] = Field(default_factory=list)


class ServerMetadata(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """Whether the server answers."""

    live: bool


class ServerReady(BaseModel):
    """Whether all models of the server answer."""

    ready: bool


class ModelReady(BaseModel):
    """Whether a model answers."""

    name: str
    ready: bool


class TensorMetadata(BaseModel):
    """A tensor of a model."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1 where any size is possible")


class ModelMetadata(BaseModel):
    """A model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class OutputTensor(BaseModel):
    """A tensor of an answer; its parameter `binary_data_size` says how many bytes of it follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: Data | None = Field(None, description="row-major; absent with the binary tensor data extension")
    parameters: Parameters | None = None


class InferAnswer(BaseModel):
    """An answer of infer."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[OutputTensor]


def rendered(answer: BaseModel) -> bytes:
    """The JSON of an answer without what is None. Tensors may be NumPy's, which pydantic does not write."""
    return orjson.dumps(answer, default=_fields, option=orjson.OPT_SERIALIZE_NUMPY)


def _fields(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, BaseModel):
        raise TypeError(f"{type(answer).__name__} has no JSON form")
    return {name: value for name, value in answer.__dict__.items() if value is not None}


def answered(answer: BaseModel, status: int = 200) -> Response:
    """The response with an answer."""
    return Response(rendered(answer), status, media_type="application/json")


def described_message(message: type[Any]) -> dict[str, Any]:
    """The OpenAPI description of a route that answers with what `v2_codec.message_json` makes of a message."""
    schema = _schema(message.DESCRIPTOR)
    return {"responses": {200: {"content": {"application/json": {"schema": schema}}}}}


def _schema(message: Descriptor) -> dict[str, Any]:
    return {
        "title": message.name,
        "type": "object",
        "properties": {field.name: _field_schema(field) for field in message.fields},
    }


def _field_schema(field: FieldDescriptor) -> dict[str, Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _value_schema(field.message_type.fields_by_name["value"])}
    return {"type": "array", "items": _value_schema(field)} if field.is_repeated else _value_schema(field)


def _value_schema(field: FieldDescriptor) -> dict[str, Any]:
    if field.message_type is not None:
        return _schema(field.message_type)
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    return {"type": _JSON_TYPES[field.cpp_type]}


_JSON_TYPES = {
    FieldDescriptor.CPPTYPE_BOOL: "boolean",
    FieldDescriptor.CPPTYPE_STRING: "string",
    FieldDescriptor.CPPTYPE_FLOAT: "number",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
    **dict.fromkeys(
        (
            FieldDescriptor.CPPTYPE_INT32,
            FieldDescriptor.CPPTYPE_INT64,
            FieldDescriptor.CPPTYPE_UINT32,
            FieldDescriptor.CPPTYPE_UINT64,
        ),
        "integer",
    ),
}
