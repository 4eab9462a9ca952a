"""Clients that others wrote, unchanged, against the gateway and a real Triton.

They are installed beside Tidemill, by version, for their needs differ from ours. `openai` and `tritonclient` are in
our lock, and in other tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import installed
from tests.integration.inference.builds import WORDS
from tests.integration.inference.conftest import Builds, InferenceProcess

pytestmark = [pytest.mark.real, pytest.mark.slow]

# Not litellm 1.107.0, which was compromised.
OPENAI_CLIENTS = ("langchain-openai==1.7.4", "instructor==1.17.0", "litellm[mcp]==1.106.12")
KSERVE = ("kserve==0.21.0",)

LANGCHAIN = """
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field
from typing import Literal

class Forecast(BaseModel):
    "A forecast."
    city: Literal["Berlin", "Paris"]
    days: int = Field(ge=1, le=9)

chat = ChatOpenAI(model=caller, base_url=url, api_key="none", temperature=1.5, seed=3, max_tokens=200, max_retries=0)
for method in ("json_schema", "function_calling"):
    found[method] = chat.with_structured_output(Forecast, method=method).invoke("hi").model_dump()
found["stream"] = "".join(chunk.content for chunk in chat.stream("hi", max_tokens=5))
options = dict(model=caller, base_url=url, api_key="none", temperature=1.5, max_tokens=5, max_retries=0)
responses = ChatOpenAI(**options, use_responses_api=True)
found["responses"] = [str(responses.invoke([("system", "Be short."), ("user", "hi")]).text)]
found["responses"].append("".join(str(chunk.text) for chunk in responses.stream("hi")))
vectors = OpenAIEmbeddings(model=classifier, base_url=url, api_key="none", check_embedding_ctx_length=False)
found["vectors"] = vectors.embed_documents(["good room", "room"])
"""

INSTRUCTOR = """
import instructor, openai
from pydantic import BaseModel, Field
from typing import Literal

class Forecast(BaseModel):
    city: Literal["Berlin", "Paris"]
    days: int = Field(ge=1, le=9)

for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(base_url=url, api_key="none", max_retries=0), mode=mode)
    found[mode.name] = client.chat.completions.create(
        model=caller, response_model=Forecast, max_retries=1, temperature=1.5, seed=3, max_tokens=200,
        messages=[{"role": "user", "content": "hi"}],
    ).model_dump()
"""

LITELLM = """
import litellm

options = {"model": "openai/" + caller, "api_base": url, "api_key": "none", "max_retries": 0}
options |= {"messages": [{"role": "user", "content": "hi"}], "temperature": 1.5, "seed": 3}
whole = litellm.completion(**options, max_tokens=5)
pieces = litellm.completion(**options, max_tokens=5, stream=True)
found["whole"] = whole.choices[0].message.content
found["stream"] = "".join(piece.choices[0].delta.content or "" for piece in pieces)
text = {"model": "text-completion-openai/" + caller, "prompt": "hi", "api_base": url, "api_key": "none"}
found["text"] = litellm.text_completion(**text, max_tokens=5).choices[0].text
asked = {"model": "openai/" + caller, "input": "hi", "api_base": url, "api_key": "none", "max_output_tokens": 5}
found["response"] = litellm.responses(**asked).output[0].content[0].text
schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
tools = [{"type": "function", "function": {"name": "paint", "parameters": schema}}]
called = litellm.completion(**options, max_tokens=100, tools=tools, tool_choice="required")
found["call"] = [(c.function.name, c.function.arguments) for c in called.choices[0].message.tool_calls]
embedded = litellm.embedding("openai/" + classifier, ["good room", "room"], api_base=url, api_key="none")
found["vectors"] = [item["embedding"] for item in embedded.data]
"""

KSERVE_CLIENT = """
import asyncio
from kserve import InferInput, InferRequest, InferenceGRPCClient, InferenceRESTClient
from kserve.inference_client import RESTConfig

async def main():
    tensor = InferInput("text", [2, 1], "BYTES", ["good room", "bad"])
    request = InferRequest(model_name=classifier, infer_inputs=[tensor])
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    base = url.removesuffix("/v1")
    found["live"] = await client.is_server_live(base), await client.is_model_ready(base, classifier)
    answer = await client.infer(base, request, model_name=classifier)
    found["rest"] = next(list(output.data) for output in answer.outputs if output.name == "label")
    client = InferenceGRPCClient(grpc)
    found["grpc_live"] = await client.is_server_live(), await client.is_model_ready(classifier)
    tensor = InferInput("text", [2, 1], "BYTES")
    tensor.set_data_from_numpy(__import__("numpy").array([[b"good room"], [b"bad"]], dtype=object))
    answer = await client.infer(InferRequest(model_name=classifier, infer_inputs=[tensor]))
    labels = next(output for output in answer.outputs if output.name == "label").as_numpy().reshape(-1)
    found["grpc"] = [label.decode() if isinstance(label, bytes) else str(label) for label in labels]
    await client.close()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def classifier(inference: InferenceProcess, builds: Builds) -> str:
    return str(inference.publish("test-stock", builds.positive).model_version.name.split("/")[1])


def _run(
    packages: Sequence[str], program: str, inference: InferenceProcess, caller: str, classifier: str, folder: Path
) -> dict[str, Any]:
    """What a program of other packages left in `found`."""
    head = {"url": f"http://127.0.0.1:{inference.http}/v1", "grpc": f"127.0.0.1:{inference.port}"}
    names = "".join(
        f"{name} = {value!r}\n" for name, value in {**head, "caller": caller, "classifier": classifier}.items()
    )
    file = folder / "program.py"
    file.write_text(f"import json\n{names}found = {{}}\n{program}\nprint(json.dumps(found))\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TIDEMILL_", "OPENAI_"))}
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    environment["PYTHONPATH"] = str(installed("clients", packages))
    done = subprocess.run(
        [sys.executable, "-P", str(file)], env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _check_vectors(vectors: list[list[float]]) -> None:
    expected = [{"good": 0.5**0.5, "room": 0.5**0.5}, {"room": 1.0}]
    for vector, shares in zip(vectors, expected, strict=True):
        assert vector == pytest.approx([shares.get(word, 0.0) for word in WORDS])


def _check_forecast(value: dict[str, Any]) -> None:
    assert value["city"] in ("Berlin", "Paris")
    assert 1 <= value["days"] <= 9


def test_langchain(inference: InferenceProcess, caller: str, classifier: str, tmp_path: Path) -> None:
    found = _run(OPENAI_CLIENTS, LANGCHAIN, inference, caller, classifier, tmp_path)
    _check_forecast(found["json_schema"])
    _check_forecast(found["function_calling"])
    assert found["stream"]
    assert all(found["responses"])
    _check_vectors(found["vectors"])


def test_instructor(inference: InferenceProcess, caller: str, classifier: str, tmp_path: Path) -> None:
    found = _run(OPENAI_CLIENTS, INSTRUCTOR, inference, caller, classifier, tmp_path)
    assert len(found) == 2
    for value in found.values():
        _check_forecast(value)


def test_litellm(inference: InferenceProcess, caller: str, classifier: str, tmp_path: Path) -> None:
    found = _run(OPENAI_CLIENTS, LITELLM, inference, caller, classifier, tmp_path)
    assert found["whole"] == found["stream"] != ""
    # It asks for 16 tokens of a response at least.
    assert found["response"].startswith(found["text"] or "-")
    [[name, arguments]] = found["call"]
    assert name == "paint"
    assert json.loads(arguments)["colour"] in ("red", "blue")
    _check_vectors(found["vectors"])


def test_kserve(inference: InferenceProcess, caller: str, classifier: str, tmp_path: Path) -> None:
    found = _run(KSERVE, KSERVE_CLIENT, inference, caller, classifier, tmp_path)
    assert (found["live"], found["grpc_live"]) == ([True, True], [True, True])
    assert found["rest"] == found["grpc"] == ["positive", "negative"]
