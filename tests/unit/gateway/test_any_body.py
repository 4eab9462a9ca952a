"""Whatever a caller sends to the doors of answers and batches is read, or refused in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batches.runner import read_lines
from gateway.http.batch_bodies import BatchBody, UploadBody
from gateway.http.bodies import read_body
from gateway.http.responses import read_response
from gateway.http.text_completions import read_text_completion
from services.kit.errors import InvalidArgumentError, NotFoundError

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
READERS: dict[str, tuple[Callable[[Any], object], dict[str, Any]]] = {
    "responses": (lambda value: read_response(value, lambda _: "x"), {"model": "m", "input": "a"}),
    "completions": (read_text_completion, {"model": "m", "prompt": "a"}),
    "batches": (lambda value: read_body(BatchBody, value), {"input_file_id": "f", "completion_window": "24h"}),
    "files": (lambda value: read_body(UploadBody, value), {"purpose": "batch"}),
}
NAMES = {
    "responses": [
        "model",
        "input",
        "instructions",
        "text",
        "include",
        "metadata",
        "reasoning",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "stream_options",
    ],
    "completions": ["model", "prompt", "n", "logprobs", "echo", "stop", "best_of", "logit_bias", "stream_options"],
    "batches": ["input_file_id", "endpoint", "metadata", "output_expires_after"],
    "files": ["purpose", "expires_after", "expires_after[seconds]", "expires_after[anchor]", "expires_after["],
}


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_any_json_is_read_or_refused(name: str, data: st.DataObject) -> None:
    read, valid = READERS[name]
    changed = data.draw(st.dictionaries(st.sampled_from(NAMES[name]), JSON, max_size=3))
    with contextlib.suppress(InvalidArgumentError, NotFoundError):
        read(valid | changed)


MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        name: JSON
        | st.sampled_from(
            [
                *("user", "message", "input_text", "function_call", "function_call_output"),
                [{"type": "input_text", "text": "a"}],
            ]
        )
        for name in ("type", "role", "content", "id", "status", "call_id", "name", "arguments", "output")
    },
)


@given(st.lists(MESSAGES, max_size=3))
def test_any_messages_are_read_or_refused(messages: list[Any]) -> None:
    with contextlib.suppress(InvalidArgumentError):
        read_response({"model": "m", "input": messages}, lambda _: "")


@given(st.lists(st.binary(max_size=20) | JSON.map(lambda value: repr(value).encode()), max_size=4))
def test_any_file_of_a_batch_is_read_or_refused(lines: list[bytes]) -> None:
    found, errors = read_lines(b"\n".join(lines), "/v1/predict")
    assert errors or found


@given(st.lists(st.dictionaries(st.sampled_from(["custom_id", "method", "url", "body"]), JSON), max_size=4))
def test_any_lines_of_a_batch_are_read_or_refused(lines: list[dict[str, Any]]) -> None:
    content = b"\n".join(orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS) for line in lines if not _too_large(line))
    found, errors = read_lines(content, "/v1/predict")
    assert errors or found


def _too_large(value: Any) -> bool:
    """Numbers that JSON here cannot have, and texts that are not UTF-8."""
    try:
        orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError):
        return True
    return False
