"""A key's tokens of a day, counted at every door that answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
import tritonclient.grpc
import tritonclient.http
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from gateway.keys.key import KeyLimits, Role
from gateway.keys.limiter import DAY_S
from gateway.keys.usage import FILE_NAME, tokens_spent
from tests.integration.gateway.conftest import Mesh
from tests.waiting import wait_until

ASK: Any = [{"role": "user", "content": "An article."}]


class Caller:
    """A key with tokens of a day, and every way to use them."""

    def __init__(self, mesh: Mesh, tokens: int) -> None:
        self.made, self.key = mesh.store.create("limited", {Role.PREDICT}, limits=KeyLimits(tokens_per_day=tokens))
        self.mesh = mesh
        self.openai = openai.OpenAI(base_url=f"http://{mesh.http}/v1", api_key=self.key, max_retries=0)
        self.http = httpx.Client(base_url=f"http://{mesh.http}", headers={"x-api-key": self.key})
        self.metadata = (("x-api-key", self.key),)

    @property
    def used(self) -> int:
        """Tokens that the gateway counted."""
        found = tokens_spent(self.mesh.state / "gateway" / FILE_NAME, 0)
        return found.get(self.made.key_id, 0)

    def grpc(self, method: str, request: Any) -> Any:
        """A call of InferenceService."""
        with grpc.insecure_channel(self.mesh.grpc) as channel:
            found = getattr(InferenceServiceStub(channel), method)(request, metadata=self.metadata, timeout=20)
            return list(found) if method == "StreamGenerate" else found

    def v2_grpc(self, outputs: Any = None) -> Any:
        """KServe V2 over gRPC."""
        tensor = tritonclient.grpc.InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(_bytes(b"seven c"))
        with tritonclient.grpc.InferenceServerClient(self.mesh.grpc) as client:
            return client.infer("reviews", [tensor], outputs=outputs, headers=dict(self.metadata))


def _bytes(text: bytes) -> Any:
    return np.array([[text]], dtype=object)


GENERATE: dict[str, Any] = {"model": "models/headlines", "text": "An article."}
# What uses tokens, and how many: of the fakes a text has one for each character, a prompt 7, an answer 3.
USES: list[tuple[str, int, Callable[[Caller], object]]] = [
    ("chat", 10, lambda c: c.openai.chat.completions.create(model="headlines", messages=ASK)),
    ("n answers", 16, lambda c: c.openai.chat.completions.create(model="headlines", messages=ASK, n=3)),
    ("stream", 10, lambda c: list(c.openai.chat.completions.create(model="headlines", messages=ASK, stream=True))),
    ("responses", 10, lambda c: c.openai.responses.create(model="headlines", input="a")),
    ("completions", 26, lambda c: c.openai.completions.create(model="headlines", prompt=["a", "b"], n=2)),
    ("embeddings", 5, lambda c: c.openai.embeddings.create(model="reviews", input=["abc", "de"])),
    ("predict", 5, lambda c: c.http.post("/v1/predict", json={"model": "reviews", "texts": ["abc", "de"]})),
    ("Predict", 3, lambda c: c.grpc("Predict", pb.PredictRequest(model="models/reviews", texts=["abc"]))),
    ("Embed", 3, lambda c: c.grpc("Embed", pb.EmbedRequest(model="models/reviews", texts=["abc"]))),
    ("Generate", 10, lambda c: c.grpc("Generate", pb.GenerateRequest(**GENERATE))),
    ("StreamGenerate", 10, lambda c: c.grpc("StreamGenerate", pb.StreamGenerateRequest(**GENERATE))),
    ("V2", 7, lambda c: c.v2_grpc([tritonclient.grpc.InferRequestedOutput("prompt_tokens")])),
]


@pytest.mark.parametrize(("tokens", "use"), [row[1:] for row in USES], ids=[row[0] for row in USES])
def test_each_door_counts_what_its_answer_used(mesh: Mesh, tokens: int, use: Callable[[Caller], object]) -> None:
    caller = Caller(mesh, 1_000_000)
    use(caller)
    assert caller.used == tokens


def test_v2_counts_what_its_caller_did_not_ask_for_and_shows_none_of_it(mesh: Mesh) -> None:
    caller = Caller(mesh, 1_000_000)
    found = caller.v2_grpc([tritonclient.grpc.InferRequestedOutput("scores")]).get_response()
    assert [output.name for output in found.outputs] == ["scores"]
    assert len(found.raw_output_contents) == 1
    assert caller.used == 7
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["seven c"]}
    body = {"inputs": [tensor], "outputs": [{"name": "scores"}]}
    answer = caller.http.post("/v2/models/reviews/infer", json=body).json()
    assert [output["name"] for output in answer["outputs"]] == ["scores"]
    assert caller.used == 14


def test_no_door_answers_when_the_tokens_are_used_up_and_says_until_when(mesh: Mesh) -> None:
    caller = Caller(mesh, 10)
    caller.openai.chat.completions.create(model="headlines", messages=ASK)
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError, match="10 tokens a day and has used 10") as found:
            caller.openai.chat.completions.create(model="headlines", messages=ASK, stream=stream)
        assert found.value.code == "tokens_per_day"
        assert 0 < int(found.value.response.headers["retry-after"]) <= DAY_S
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}
    for path, body in (
        ("/v1/responses", {"model": "headlines", "input": "a"}),
        ("/v1/completions", {"model": "headlines", "prompt": "a"}),
        ("/v1/embeddings", {"model": "reviews", "input": "a"}),
        ("/v1/predict", {"model": "reviews", "texts": ["a"]}),
        ("/v2/models/reviews/infer", {"inputs": [tensor]}),
    ):
        assert caller.http.post(path, json=body).status_code == 429, path
    for method, request in (
        ("Predict", pb.PredictRequest(model="models/reviews", texts=["a"])),
        ("Embed", pb.EmbedRequest(model="models/reviews", texts=["a"])),
        ("Generate", pb.GenerateRequest(**GENERATE)),
        ("StreamGenerate", pb.StreamGenerateRequest(**GENERATE)),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            caller.grpc(method, request)
        error: Any = refused.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(error)
        assert status is not None
        details = [detail for detail in status.details if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)]
        assert len(details) == 1
    with pytest.raises(tritonclient.grpc.InferenceServerException, match="RESOURCE_EXHAUSTED"):
        caller.v2_grpc()
    # What uses no tokens is open: models, and what is said of answers.
    assert caller.http.get("/v1/models").status_code == 200
    assert caller.http.post("/v1/feedback", json={"answer": "01jtest", "rating": 1}).status_code == 200
    assert caller.used == 10


def test_a_caller_who_hangs_up_pays_for_what_was_written(mesh: Mesh) -> None:
    caller = Caller(mesh, 1_000_000)
    body = {"model": "headlines", "stream": True, "messages": [{"role": "user", "content": "wait"}]}
    with caller.http.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
    mesh.run(mesh.peers.seen.cancelled.wait())
    wait_until(lambda: caller.used == 10, "what was written is counted")


def test_the_command_shows_and_changes_limits(mesh: Mesh) -> None:
    caller = Caller(mesh, 100)
    caller.openai.chat.completions.create(model="headlines", messages=ASK)

    def limit(*arguments: str) -> str:
        database = ("--database-url", f"sqlite:///{mesh.state / 'db' / 'gateway.sqlite'}")
        command = [sys.executable, "-m", "gateway.cli.main", "keys", "limit", caller.made.key_id, *arguments, *database]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert "10 of 100 tokens today" in limit()
    assert "2/s, 10 of 50 tokens today" in limit("--tokens-per-day", "50", "--requests-per-s", "2")
    found = json.loads(limit("--tokens-per-day", "0", "--json"))
    assert (found["requests_per_s"], found["tokens_per_day"], found["tokens_today"]) == (2.0, None, None)
