"""A batch whose gateway is killed: the next one continues it."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.faults.gateway_process import GatewayProcess, running_gateway
from tests.integration.gateway.fake_peers import FakePeers
from tests.waiting import wait_until

pytestmark = pytest.mark.real

_LINES, _AT_ONCE = 300, 2


@pytest.fixture
def peers() -> Iterator[FakePeers]:
    """Inference and Triton, played in this process, which outlives the gateways."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    peers = FakePeers()
    asyncio.run_coroutine_threadsafe(peers.start(), loop).result(30)
    yield peers
    asyncio.run_coroutine_threadsafe(peers.stop(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def _client(gateway: GatewayProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{gateway.http}/v1", api_key=gateway.key)


def _out(state: Path, batch: str) -> Path:
    return state / "gateway" / "batches" / "t-" / "batches" / f"{batch}.out"


def _written(state: Path, batch: str) -> int:
    path = _out(state, batch)
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _lines() -> bytes:
    asked = ({"model": "headlines", "messages": [{"role": "user", "content": f"text {n}"}]} for n in range(_LINES))
    url = "/v1/chat/completions"
    return b"\n".join(
        json.dumps({"custom_id": str(n), "method": "POST", "url": url, "body": body}).encode()
        for n, body in enumerate(asked)
    )


def test_a_batch_continues_behind_what_is_written(tmp_path: Path, peers: FakePeers) -> None:
    settings = {"INFERENCE_ADDRESS": peers.address, "TRITON_GRPC": peers.address, "BATCH_REQUESTS": str(_AT_ONCE)}
    with running_gateway(tmp_path, settings) as first:
        client = _client(first)
        file = client.files.create(file=("b.jsonl", io.BytesIO(_lines())), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        ).id
        wait_until(lambda: _written(tmp_path, batch) > 20, "some lines are answered")
        first.process.kill()
        first.process.wait()
        assert _written(tmp_path, batch) < _LINES
        with _out(tmp_path, batch).open("ab") as out:
            out.write(b'{"id":"batch_req_torn","custom_id":"7')
        with running_gateway(tmp_path, settings) as second:
            client = _client(second)
            wait_until(lambda: client.batches.retrieve(batch).status == "completed", "the end of the batch")
            ended = client.batches.retrieve(batch)
            assert ended.request_counts is not None
            assert (ended.request_counts.completed, ended.request_counts.failed) == (_LINES, 0)
            assert ended.output_file_id is not None
            answers = [json.loads(line) for line in client.files.content(ended.output_file_id).text.splitlines()]
    assert sorted(int(answer["custom_id"]) for answer in answers) == list(range(_LINES))
    # What was being answered when the first one died was asked again, and nothing else.
    asked = Counter(request.text for request in peers.seen.requests if request.text.startswith("text"))
    assert len(asked) == _LINES
    assert sum(asked.values()) <= _LINES + _AT_ONCE
