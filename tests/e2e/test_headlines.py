"""A small cycle of `pipelines/headlines.yaml`, and the clients of its model."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import re
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from infra.stack.topology import PARTS, SERVICES
from services.cleaning.adapters.served_models import ServedModels
from services.cleaning.engine.rewriter import Question, ServedModel
from services.kit.network_rules import NetworkRules
from services.pipeline.adapters.judge_calls import JudgeCalls
from services.pipeline.domain.capture import CapturedAnswer
from services.pipeline.domain.judge import JudgeSpec, LanguageModelJudge, NoVerdictError
from tests.e2e.conftest import Mesh
from tests.trees import entries_below
from tests.waiting import wait_until

MODEL = "headlines-small"
ARTICLE = "Shares in the bank rose sharply on Tuesday after it raised its forecast for the year."


def _small(value: dict[str, Any]) -> None:
    """Reduces steps and examples. The quality of the model is not tested, so the gate has no conditions."""
    value["name"] = MODEL
    value["training"]["model_name"] = MODEL
    value["training"]["optimization"] |= {"max_steps": 3, "batch_size": 2}
    value["training"]["optimization"].pop("epochs", None)
    value["training"]["evaluation"] = {"max_examples": 4}
    value["training"]["compression"] = {"variants": ["int8"]}
    value["gate"] = {"max_quality_loss": 1.0}
    value["rollout"]["model"] = f"models/{MODEL}"


@pytest.fixture(scope="module")
def cycle(mesh: Mesh) -> dict[str, Any]:
    """The cycle, ended."""
    found: dict[str, Any] = mesh.json("run", str(mesh.pipeline("headlines.yaml", _small)))
    return found


@pytest.fixture(scope="module")
def client(mesh: Mesh, cycle: dict[str, Any]) -> openai.OpenAI:
    """The official client, unmodified."""
    return openai.OpenAI(base_url=f"http://{mesh.stack.address('gateway_http')}/v1", api_key=mesh.key, max_retries=0)


def test_about_160_duplicates_go_and_a_headline_is_asked_of_every_article(cycle: dict[str, Any]) -> None:
    assert cycle["state"] == "STATE_SUCCEEDED"
    version = cycle["dataset_version"]
    assert int(version["records_in"]) > 2000
    rejected = version["rejected_by_reason"]
    duplicates = sum(int(count) for reason, count in rejected.items() if "duplicate" in reason)
    assert 140 <= duplicates <= 180
    assert {variant["precision"] for variant in cycle["report"]["variants"]} == {"int8"}


def test_the_openai_client_streams_a_headline(client: openai.OpenAI) -> None:
    assert MODEL in {model.id for model in client.models.list()}
    pieces = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": ARTICLE}],
            stream=True,
            temperature=0,
            extra_body={"apply_prompt_template": True},
        )
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text.strip()
    assert len(pieces) > 3
    assert pieces[0].id.startswith("answers/")


def test_a_stub_gets_the_same_answer_as_the_openai_client(mesh: Mesh, client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": ARTICLE}],
        temperature=0,
        extra_body={"apply_prompt_template": True},
    )
    with mesh.channel() as channel:
        request = pb.GenerateRequest(model=f"models/{MODEL}", text=ARTICLE)
        answer = InferenceServiceStub(channel).Generate(request, metadata=mesh.metadata, timeout=60)
    assert answer.text == whole.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def test_a_small_model_as_a_judge_gives_a_verdict_or_none_and_nothing_else(mesh: Mesh, cycle: dict[str, Any]) -> None:
    """The gateway holds its reply to the schema; what it thinks of the answer is not tested."""
    address = f"http://{mesh.stack.address('gateway_http')}/v1"
    kind = LanguageModelJudge(address, MODEL, "It is about banks.", "TIDEMILL_JUDGE_KEY_MESH", max_tokens=300)
    calls = JudgeCalls(NetworkRules(["127.0.0.1:*"]), lambda _: mesh.key)
    answer = CapturedAnswer(
        "answers/a", "models/m/versions/1", "generate", ARTICLE, "Bank shares rise", datetime.now(UTC)
    )

    async def tokens() -> int:
        try:
            opinion = await calls.rate(JudgeSpec("large", kind, timeout_s=120), answer, {})
        except NoVerdictError as error:
            # It wrote until it had no tokens left.
            return error.tokens
        assert opinion.reason
        return opinion.tokens

    assert asyncio.run(tokens()) > 20


def test_a_small_model_writes_a_variant_or_ends_at_its_limit(mesh: Mesh, cycle: dict[str, Any]) -> None:
    """As an augmenter asks; what the variant is worth is not tested."""
    served = ServedModel(f"http://{mesh.stack.address('gateway_http')}/v1", MODEL, "TIDEMILL_AUGMENT_KEY_MESH")
    models = ServedModels(NetworkRules(["127.0.0.1:*"]), lambda _: mesh.key, timeout_s=120)
    answer = asyncio.run(models.ask(Question(served, ARTICLE, 60, 0.7, 5, ("news", "r1"), 1)))
    assert bool(answer.text) != (answer.dropped == "cut_off")


def test_the_model_has_a_card_in_the_terminal_and_in_the_console(
    mesh: Mesh, cycle: dict[str, Any], tmp_path: Path
) -> None:
    card = mesh.tidemill("card", MODEL).stdout
    version = cycle["model_version"]
    assert card.startswith(f"# {version}\n")
    run = re.search(r"runs/[0-9a-z]+", card)
    assert run is not None
    for words in (
        f"| data | {cycle['dataset_version']['name']} |",
        "| base model | smollm2",
        "int8, published",
        "ROUGE-L",
        "| time |",
        "| tokens a second |",
    ):
        assert words in card, card
    file = tmp_path / "card.html"
    file.touch(mode=0o666)
    file.chmod(0o666)
    mesh.tidemill("card", version.removeprefix("models/"), "--out", str(file))
    page = file.read_text(encoding="utf-8")
    assert "<svg" in page
    refused = mesh.tidemill("card", f"{MODEL}/versions/99", check=False)
    assert refused.returncode != 0
    assert "tidemill models" in refused.stderr

    origin = f"http://{mesh.stack.address('gateway_http')}"
    with httpx.Client(base_url=origin, headers={"origin": origin}) as browser:
        assert browser.post("/console/sign-in", data={"key": mesh.key}).status_code == 303
        assert f"/console/{version}/card.html" in browser.get(f"/console/{version}").text
        shown = browser.get(f"/console/{version}/card.html")
        assert (shown.text, shown.headers["content-type"]) == (page, "text/html; charset=utf-8")
        assert "attachment" in shown.headers["content-disposition"]
        candidate = browser.get(f"/console/{run[0]}/card.md")
        assert candidate.text.startswith(f"# {run[0]}\n")
        assert browser.get(f"/console/{run[0]}/card.pdf").status_code == 404


def test_a_missing_model_is_not_found_everywhere(mesh: Mesh, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="none", messages=[{"role": "user", "content": "Hi"}])
    result = mesh.tidemill("generate", "none", "Hi", check=False)
    assert result.returncode != 0
    assert "none" in result.stderr


def test_without_a_key_no_one_is_served(mesh: Mesh, cycle: dict[str, Any]) -> None:
    answer = httpx.get(f"http://{mesh.stack.address('gateway_http')}/v1/models")
    assert answer.status_code == 401


def test_the_triton_clients_meet_the_gateway(mesh: Mesh, cycle: dict[str, Any]) -> None:
    headers = {"authorization": f"Bearer {mesh.key}"}
    over_http = triton_http.InferenceServerClient(mesh.stack.address("gateway_http"))
    assert over_http.is_server_live(headers=headers)
    assert over_http.is_model_ready(MODEL, headers=headers)
    over_grpc = triton_grpc.InferenceServerClient(mesh.stack.address("gateway"))
    metadata = over_grpc.get_model_metadata(MODEL, headers=headers)
    assert metadata.name == MODEL
    over_http.close()
    over_grpc.close()


def test_one_trace_goes_from_the_gateway_into_triton(mesh: Mesh, cycle: dict[str, Any]) -> None:
    answer = httpx.post(
        f"http://{mesh.stack.address('gateway_http')}/v1/chat/completions",
        headers={"authorization": f"Bearer {mesh.key}"},
        json={"model": MODEL, "messages": [{"role": "user", "content": ARTICLE}], "max_tokens": 4},
        timeout=60,
    )
    assert answer.status_code == 200
    trace_id = answer.headers["x-trace-id"]
    wanted = {"gateway", "triton"}

    def services() -> set[str] | None:
        result = mesh.tidemill("trace", trace_id, "--json", check=False)
        if result.returncode:
            return None
        found = {span["service"] for span in json.loads(result.stdout)["spans"]}
        return found if wanted <= found else None

    wait_until(services)


def test_logs_are_found_by_level_and_service(mesh: Mesh, cycle: dict[str, Any]) -> None:
    def lines() -> str | None:
        return mesh.tidemill("logs", "level:info service:training").stdout.strip() or None

    assert "training" in wait_until(lines)
    assert mesh.tidemill("logs", "level:info service:no-such-service").stdout.strip() in ("", "No log line matches.")


def test_nothing_that_the_parts_wrote_is_open_to_other_users(
    mesh: Mesh, cycle: dict[str, Any], client: openai.OpenAI
) -> None:
    """Files, folders and sockets of every part, by their own modes: umask 077 holds in whatever a part starts."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": ARTICLE}], "max_tokens": 4}
    line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = client.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    wait_until(lambda: client.batches.retrieve(made.id).status == "completed", "the batch")

    state = mesh.stack.state
    found = {str(path.relative_to(state)): entry.st_mode for path, entry in entries_below(state)}
    for part in (
        "stack.json",
        "db/gateway.sqlite",
        "mlflow.db",
        "kafka/data/*",
        "elasticsearch/data/*",
        "elasticsearch/config/elasticsearch.keystore",
        "artifacts/datasets/*/*/train.parquet",
        "artifacts/runs/*/report.json",
        f"triton/models/{MODEL}*/1/build/*",
        "triton/models/*/1/model.py",
        "gateway/batches/*",
        "logs/triton.log",
        *(f"tmp/{each.name}-*" for each in SERVICES),
        *(f"{each}/tmp" for each in PARTS),
    ):
        assert fnmatch.filter(found, part), f"nothing at {part}"
    (sockets,) = {path.parent for path in mesh.stack.sockets.values()}  # elsewhere if the state's path is too long
    found |= {str(path): entry.st_mode for path, entry in entries_below(sockets)}
    assert {"triton", *(each.name for each in SERVICES)} <= {
        re.split("[-:]", Path(path).name)[0] for path, mode in found.items() if stat.S_ISSOCK(mode)
    }
    # What is in `artifacts/load` was put there by the tests themselves.
    opened = {
        path: f"{mode:o}"
        for path, mode in found.items()
        if mode & 0o077 and not stat.S_ISLNK(mode) and not path.startswith("artifacts/load")
    }
    assert opened == {}
