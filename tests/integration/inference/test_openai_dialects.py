"""OpenAI's other ways to ask for an answer, with a real engine whose weights are random."""

from __future__ import annotations

import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.integration.inference.conftest import InferenceProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.real


class Forecast(BaseModel):
    city: Literal["Berlin", "上海"]
    days: int = Field(ge=1, le=9)


@pytest.fixture(scope="module")
def client(inference: InferenceProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{inference.http}/v1", api_key="none", max_retries=0, timeout=60)


def test_a_response_follows_a_schema_whole_and_streamed(client: openai.OpenAI, caller: str) -> None:
    parsed = client.responses.parse(model=caller, input="hi", text_format=Forecast, max_output_tokens=200)
    assert parsed.status == "completed"
    assert parsed.output_parsed is not None
    with client.responses.stream(model=caller, input="hi", text_format=Forecast, max_output_tokens=200) as stream:
        streamed = stream.get_final_response()
    # Greedy, so the same; each is an answer of its own.
    assert streamed.output_parsed == parsed.output_parsed
    assert streamed.id != parsed.id


def test_texts_with_their_tokens_and_where_each_begins(client: openai.OpenAI, caller: str) -> None:
    answer = client.completions.create(model=caller, prompt=["hi", "good room"], max_tokens=8, logprobs=1, n=2)
    assert len(answer.choices) == 4
    assert answer.usage is not None
    assert answer.usage.completion_tokens == sum(len((c.logprobs and c.logprobs.tokens) or ()) for c in answer.choices)
    for choice in answer.choices:
        tokens = choice.logprobs
        assert tokens is not None
        assert tokens.tokens is not None
        assert tokens.text_offset is not None
        assert tokens.text_offset == sorted(tokens.text_offset)
        for at, token in zip(tokens.text_offset, tokens.tokens, strict=True):
            # Random weights write parts of characters, and an end that is not in the text.
            assert choice.text.startswith(token, at) or "\ufffd" in token or token == "<|endoftext|>"
    whole = client.completions.create(model=caller, prompt="hi", max_tokens=8, echo=True).choices[0].text
    pieces = client.completions.create(model=caller, prompt="hi", max_tokens=8, stream=True)
    assert whole == "hi" + "".join(piece.choices[0].text for piece in pieces if piece.choices)


def test_a_batch_is_answered_in_the_background(client: openai.OpenAI, caller: str) -> None:
    lines = [
        {"custom_id": str(n), "url": "/v1/completions", "body": {"model": caller, "prompt": "hi", "max_tokens": 4}}
        for n in range(3)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("b.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h").id
    wait_until(lambda: client.batches.retrieve(batch).status == "completed", "the end of the batch")
    ended = client.batches.retrieve(batch)
    assert ended.output_file_id is not None
    answers = [json.loads(line) for line in client.files.content(ended.output_file_id).text.splitlines()]
    online = client.completions.create(model=caller, prompt="hi", max_tokens=4).choices[0].text
    assert [answer["response"]["body"]["choices"][0]["text"] for answer in answers] == [online] * 3
