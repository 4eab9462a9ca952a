"""Whose request it is, and whether someone waits for it, as Triton's models learn it."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import openai
import pytest
from tidemill.inference.v1.inference_service_pb2 import GenerateRequest
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from services.serving.adapters.triton_tensors import BACKGROUND, CALLER
from tests.integration.gateway.conftest import Mesh

ASK: Any = [{"role": "user", "content": "An article."}]
FLEX = {"x-service-tier": "flex"}


@pytest.fixture
def client(mesh: Mesh) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{mesh.http}/v1", api_key=mesh.key, max_retries=0)


def _learned(mesh: Mesh) -> tuple[str, bool]:
    """What the model got with its last request."""
    parameters = mesh.peers.seen.metadata[-1]
    return str(parameters.get(CALLER, "")), BACKGROUND in parameters


def test_openais_service_tier_is_the_background(mesh: Mesh, client: openai.OpenAI) -> None:
    own = mesh.key.split("_")[1]
    for tier, background in (("flex", True), ("auto", False), ("default", False), ("priority", False)):
        named: Any = tier
        answer = client.chat.completions.create(model="headlines", messages=ASK, service_tier=named)
        assert (answer.service_tier, _learned(mesh)) == ("flex" if background else "default", (own, background))
        response = client.responses.create(model="headlines", input="a", service_tier=named)
        assert (response.service_tier, _learned(mesh)) == ("flex" if background else "default", (own, background))
        list(client.chat.completions.create(model="headlines", messages=ASK, service_tier=named, stream=True))
        assert _learned(mesh) == (own, background)
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model="headlines", messages=ASK, extra_body={"service_tier": "gold"})
    assert found.value.param == "service_tier"


def test_a_header_says_it_at_every_door(mesh: Mesh, http: httpx.Client) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}
    for path, body in (
        ("/v1/completions", {"model": "headlines", "prompt": "a"}),
        ("/v2/models/reviews/infer", {"inputs": [tensor], "outputs": [{"name": "scores"}]}),
    ):
        for headers, background in ((FLEX, True), ({"x-service-tier": "auto"}, False), ({}, False)):
            assert http.post(path, json=body, headers=headers).status_code == 200, path
            assert _learned(mesh)[1] is background, path
    with grpc.insecure_channel(mesh.grpc) as channel:
        generate = InferenceServiceStub(channel).Generate
        for extra, background in (((*FLEX.items(),), True), ((), False)):
            metadata = (("x-api-key", mesh.key), *extra)
            generate(GenerateRequest(model="models/headlines", text="a"), metadata=metadata, timeout=20)
            assert _learned(mesh)[1] is background


def test_no_caller_takes_another_ones_turn(mesh: Mesh, http: httpx.Client) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}
    body = {"inputs": [tensor], "outputs": [{"name": "scores"}], "parameters": {CALLER: "someone", BACKGROUND: True}}
    assert http.post("/v2/models/reviews/infer", json=body).status_code == 200
    assert _learned(mesh) == (mesh.key.split("_")[1], False)
