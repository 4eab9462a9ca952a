"""Texts of KServe V2 requests: what no model can read is refused before it reaches one."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as v2

from services.kit.errors import InvalidArgumentError
from services.serving.adapters.texts import check_texts


def request(*elements: bytes, raw: bool = True) -> Any:
    made = v2.ModelInferRequest(model_name="m")
    number = made.inputs.add(name="NUMBER", datatype="FP32", shape=[1])
    tensor = made.inputs.add(name="TEXT", datatype="BYTES", shape=[len(elements)])
    if raw:
        made.raw_input_contents.append(b"\xff\xff\xff\xff")
        made.raw_input_contents.append(b"".join(struct.pack("<I", len(e)) + e for e in elements))
    else:
        number.contents.fp32_contents.append(1)
        tensor.contents.bytes_contents.extend(elements)
    return made


@pytest.mark.parametrize("raw", [True, False])
def test_text_passes(raw: bool) -> None:
    check_texts(request(b"", "héllo 看".encode(), raw=raw))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(("element", "why"), [(b"\xff\xfe", "is not UTF-8"), (b"a\0b", "NUL")])
def test_what_is_not_text_is_named(raw: bool, element: bytes, why: str) -> None:
    for _ in range(2):  # the same error each time
        with pytest.raises(InvalidArgumentError, match=why) as caught:
            check_texts(request(b"good", element, raw=raw))
        assert caught.value.violations[0].field == "inputs[TEXT][1]"


def test_a_broken_tensor_is_left_to_triton() -> None:
    made = request(b"a")
    made.raw_input_contents[1] = b"\xff\xff\xff\x7fabc"
    check_texts(made)
    made.raw_input_contents[1] = b"\1"
    check_texts(made)
