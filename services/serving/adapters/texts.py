"""Validates the texts of KServe V2 requests before a cache or a runtime sees them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from services.kit.errors import FieldViolation, InvalidArgumentError


def check_texts(request: Any) -> None:
    """Refuses BYTES inputs that are not text: every model of the mesh reads text.

    Args:
        request: `inference.ModelInferRequest`.

    Raises:
        InvalidArgumentError: an element is not UTF-8, or has a NUL, where runtimes end a text.
    """
    raws: Sequence[bytes] = request.raw_input_contents
    for index, tensor in enumerate(request.inputs):
        if tensor.datatype != "BYTES":
            continue
        elements = _elements(raws[index]) if index < len(raws) else iter(tensor.contents.bytes_contents)
        for number, element in enumerate(elements):
            if b"\0" in element:
                raise _refused(tensor.name, number, "has a NUL character (U+0000)")
            try:
                element.decode()
            except UnicodeDecodeError as error:
                raise _refused(tensor.name, number, f"is not UTF-8 text: {error.reason}") from error


def _elements(raw: bytes) -> Iterator[bytes]:
    """The elements; a length that does not fit ends them, and Triton refuses the tensor."""
    offset = 0
    while offset + 4 <= len(raw):
        (size,) = struct.unpack_from("<I", raw, offset)
        yield raw[offset + 4 : offset + 4 + size]
        offset += 4 + size


def _refused(name: str, number: int, why: str) -> InvalidArgumentError:
    field = f"inputs[{name}][{number}]"
    return InvalidArgumentError(f"{field} {why}.", reason="INVALID_TEXT", violations=[FieldViolation(field, why)])
