"""The statuses of errors that Triton reports in a stream as texts."""

from __future__ import annotations

import grpc
import pytest

from services.kit.engine import FAILED, INVALID, QUEUE_FULL
from services.serving.adapters.triton_errors import status_of_text


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (f"{INVALID}too long", grpc.StatusCode.INVALID_ARGUMENT, "too long"),
        (f"{FAILED}the engine failed", grpc.StatusCode.INTERNAL, "the engine failed"),
        ("Request for unknown model: 'm.1' is not found", grpc.StatusCode.NOT_FOUND, None),
        (f"256 {QUEUE_FULL} 3 s.", grpc.StatusCode.UNAVAILABLE, None),
        ("Failed to process the request(s) for model 'm.1_0_0', message: x", grpc.StatusCode.INTERNAL, None),
        ("Stub process 'm.1_0_0' is not healthy.", grpc.StatusCode.INTERNAL, None),
        ("unexpected inference input 'texts' for model 'm.1'", grpc.StatusCode.INVALID_ARGUMENT, None),
    ],
)
def test_a_text_becomes_the_status_that_triton_would_have_given(
    text: str, code: grpc.StatusCode, message: str | None
) -> None:
    assert status_of_text(text) == (code, text if message is None else message)
