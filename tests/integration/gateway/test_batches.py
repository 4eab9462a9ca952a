"""Batches, by the official `openai` package unchanged."""

from __future__ import annotations

import io
import json
import re
import time
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

from gateway.batches.objects import KEEP_S
from gateway.batches.store import BatchStore
from gateway.keys.key import KeyLimits, Role
from gateway.keys.usage import FILE_NAME, tokens_spent
from tests.integration.gateway.conftest import Mesh
from tests.integration.gateway.fake_peers import WORDS
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "cancelled", "expired")


def line(name: str, content: str = "An article.", url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = {"model": "headlines", "messages": [{"role": "user", "content": content}], **body}
    return {"custom_id": name, "method": "POST", "url": url, "body": asked}


class Caller:
    """A key, and its batches."""

    def __init__(self, mesh: Mesh, tenant: str = "", limits: KeyLimits | None = None) -> None:
        self.key, text = mesh.store.create("b", {Role.PREDICT}, tenant=tenant, limits=limits or KeyLimits())
        self.client = openai.OpenAI(base_url=f"http://{mesh.http}/v1", api_key=text, max_retries=0)

    def upload(self, *lines: dict[str, Any] | str) -> str:
        content = "\n".join(item if isinstance(item, str) else json.dumps(item) for item in lines).encode() + b"\n"
        return self.client.files.create(file=("my.jsonl", io.BytesIO(content)), purpose="batch").id

    def create(self, *lines: dict[str, Any] | str, endpoint: Any = CHAT) -> Batch:
        return self.client.batches.create(
            input_file_id=self.upload(*lines), endpoint=endpoint, completion_window="24h", metadata={"job": "7"}
        )

    def ended(self, batch: Batch) -> Batch:
        wait_until(lambda: self.client.batches.retrieve(batch.id).status in ENDED, "the end of the batch")
        return self.client.batches.retrieve(batch.id)

    def lines_of(self, file_id: str | None) -> dict[str, Any]:
        assert file_id is not None
        written = [json.loads(text) for text in self.client.files.content(file_id).text.splitlines()]
        found = {item["custom_id"]: item for item in written}
        assert len(found) == len(written)
        return found


@pytest.fixture
def caller(mesh: Mesh, request: pytest.FixtureRequest) -> Caller:
    """Of a tenant of its own."""
    return Caller(mesh, f"tenant-{abs(hash(request.node.name)) % 10**9}")


def test_a_batch_is_answered_with_its_failures_apart(mesh: Mesh, caller: Caller) -> None:
    good = [line(f"good-{number}") for number in range(12)]
    bad = [line("no-model", model="nothing"), line("wrong", temperature=7), line("broken", "fail")]
    made = caller.create(*good, *bad)
    assert (made.status, made.object, made.endpoint, made.metadata) == ("validating", "batch", CHAT, {"job": "7"})
    batch = caller.ended(made)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (15, 12, 3)
    assert batch.created_at <= (batch.in_progress_at or 0) <= (batch.completed_at or 0)
    Batch.model_validate(batch.model_dump(), strict=True)
    answers = caller.lines_of(batch.output_file_id)
    assert answers.keys() == {item["custom_id"] for item in good}
    response = answers["good-3"]["response"]
    assert response["status_code"] == 200
    assert response["body"]["choices"][0]["message"]["content"] == "".join(WORDS)
    failures = caller.lines_of(batch.error_file_id)
    assert {name: item["response"]["status_code"] for name, item in failures.items()} == {
        "no-model": 404,
        "wrong": 400,
        "broken": 500,
    }
    assert failures["wrong"]["response"]["body"]["error"]["param"] == "temperature"
    metrics = httpx.get(f"http://{mesh.http}/metrics").text
    assert re.search(r'^batch_requests_total\{.*result="failed".*\} 3\.0', metrics, re.MULTILINE)


@pytest.mark.parametrize(
    ("endpoint", "body", "path"),
    [
        ("/v1/responses", {"model": "headlines", "input": "a"}, ("output", 0, "content", 0, "text")),
        ("/v1/completions", {"model": "headlines", "prompt": "a"}, ("choices", 0, "text")),
        ("/v1/embeddings", {"model": "reviews", "input": "a"}, ("data", 0, "embedding")),
        ("/v1/predict", {"model": "reviews", "texts": ["a"]}, ("predictions", 0, "label")),
    ],
)
def test_each_door_that_answers_takes_batches(
    caller: Caller, endpoint: str, body: dict[str, Any], path: tuple[str | int, ...]
) -> None:
    batch = caller.ended(caller.create({"custom_id": "a", "url": endpoint, "body": body}, endpoint=endpoint))
    found = caller.lines_of(batch.output_file_id)["a"]["response"]["body"]
    for step in path:
        found = found[step]
    assert found


def test_files_are_listed_read_and_deleted(caller: Caller) -> None:
    ids = [caller.upload(line(str(number))) for number in range(3)]
    files = caller.client.files
    found = files.retrieve(ids[0])
    assert (found.filename, found.purpose, found.bytes) == ("my.jsonl", "batch", len(files.content(ids[0]).content))
    assert found.expires_at == found.created_at + KEEP_S
    assert [item.id for item in files.list(order="asc", limit=2)] == ids  # the client asks for the next page itself
    assert {item.id for item in files.list()} == set(ids)
    assert list(files.list(purpose="batch_output")) == []
    assert files.delete(ids[1]).deleted
    for method in (files.retrieve, files.content, files.delete):
        with pytest.raises(openai.NotFoundError):
            method(ids[1])
    short = files.create(file=b"{}", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    assert short.expires_at == short.created_at + 3600


def test_batches_are_listed_newest_first(caller: Caller) -> None:
    made = [caller.create(line("a")).id for _ in range(3)]
    assert [batch.id for batch in caller.client.batches.list(limit=2)] == made[::-1]


def test_a_batch_is_cancelled_and_keeps_its_answers(mesh: Mesh, caller: Caller) -> None:
    made = caller.create(*(line(str(number)) for number in range(6)), *(line(f"w{n}", "wait") for n in range(40)))

    def counts() -> int:
        found = caller.client.batches.retrieve(made.id).request_counts
        return found.completed if found is not None else 0

    wait_until(lambda: counts() == 6, "what can be answered is answered")
    assert caller.client.batches.cancel(made.id).status in ("cancelling", "cancelled")
    batch = caller.ended(made)
    assert batch.status == "cancelled"
    assert batch.cancelled_at is not None
    assert len(caller.lines_of(batch.output_file_id)) == 6
    assert caller.client.batches.cancel(made.id).status == "cancelled"
    done = caller.ended(caller.create(line("a")))
    with pytest.raises(openai.ConflictError, match="has ended: completed"):
        caller.client.batches.cancel(done.id)


@pytest.mark.parametrize(
    ("lines", "code", "number", "words"),
    [
        (["{"], "invalid_line", 1, "not valid JSON"),
        (["[]"], "invalid_line", 1, "must be a JSON object"),
        ([line("a"), line("a")], "invalid_line", 2, "used by an earlier line"),
        ([line("")], "invalid_line", 1, "`custom_id` must be"),
        ([line("a", url="/v1/embeddings")], "invalid_line", 1, "must be the batch's endpoint"),
        ([line("a", stream=True)], "invalid_line", 1, "`body.stream` cannot be true"),
        ([line("a") | {"colour": 1}], "invalid_line", 1, "`colour` is not a field"),
        ([line("a") | {"body": 1}], "invalid_line", 1, "`body` must be an object"),
        (["", ""], "invalid_file", None, "1 to 50,000 requests"),
    ],
)
def test_a_wrong_file_fails_with_its_lines_before_anything_is_asked(
    mesh: Mesh, caller: Caller, lines: list[Any], code: str, number: int | None, words: str
) -> None:
    before = len(mesh.peers.seen.requests)
    batch = caller.ended(caller.create(*lines))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    [error] = batch.errors.data
    assert (error.code, error.line) == (code, number)
    assert words in (error.message or "")
    assert (batch.output_file_id, len(mesh.peers.seen.requests)) == (None, before)


def test_no_tenant_sees_what_another_has(mesh: Mesh, caller: Caller) -> None:
    batch = caller.ended(caller.create(line("a")))
    for other in (Caller(mesh, ".."), Caller(mesh, "another"), Caller(mesh)):
        client = other.client
        assert batch.id not in [item.id for item in client.batches.list()]
        assert batch.output_file_id not in [item.id for item in client.files.list()]
        for file_id in (batch.output_file_id, batch.input_file_id, "../../" + str(batch.output_file_id)):
            for method in (client.files.content, client.files.delete, client.files.retrieve):
                with pytest.raises(openai.NotFoundError):
                    method(str(file_id))
        for ask in (client.batches.retrieve, client.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(batch.id)
        with pytest.raises(openai.NotFoundError):
            client.batches.create(input_file_id=batch.input_file_id, endpoint="/v1/responses", completion_window="24h")
    # Keys of one tenant share.
    assert Caller(mesh, caller.key.tenant).client.batches.retrieve(batch.id).id == batch.id


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_with_a_batch_is_named(caller: Caller, changed: dict[str, Any], param: str) -> None:
    body = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h", **changed}
    with pytest.raises(openai.BadRequestError) as found:
        caller.client.post("/batches", body=body, cast_to=object)
    assert found.value.param == param


def test_what_is_wrong_with_an_upload_is_named(mesh: Mesh, caller: Caller) -> None:
    purposes: list[Any] = ["fine-tune", "vision"]
    for purpose in purposes:
        with pytest.raises(openai.BadRequestError) as found:
            caller.client.files.create(file=b"{}", purpose=purpose)
        assert found.value.param == "purpose"
    client = httpx.Client(base_url=f"http://{mesh.http}", headers={"x-api-key": mesh.key})
    wrong: list[dict[str, Any]] = [
        {"content": b"x"},
        {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
        {"content": b"--a\r\nx", "headers": {"content-type": "multipart/form-data; boundary=a"}},
        {"data": {"purpose": "batch"}, "files": {"other": b"x"}},
        {"data": {"purpose": "batch", "file": "text"}, "files": {"a": b"x"}},
    ]
    for sent in wrong:
        assert client.post("/v1/files", **sent).status_code == 400, sent
    for query in ("limit=0", "limit=x", "order=up"):
        assert client.get(f"/v1/files?{query}").status_code == 400


def test_a_batch_whose_key_is_revoked_fails(mesh: Mesh, caller: Caller) -> None:
    mesh.store.revoke(caller.key.key_id)

    def refused() -> bool:
        with suppress(openai.AuthenticationError):
            caller.client.models.list()
            return False
        return True

    wait_until(refused, "the key is refused")
    store = BatchStore(mesh.state / "gateway" / "batches", 10**9, time.time)
    content = json.dumps(line("a")).encode()
    file = store.put_file(caller.key.tenant, "a", io.BytesIO(content), len(content), KEEP_S)
    made = store.create_batch(caller.key.tenant, caller.key.key_id, file.id, CHAT, None, KEEP_S)
    other = Caller(mesh, caller.key.tenant)
    batch = other.ended(other.client.batches.retrieve(made.id))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert batch.errors.data[0].code == "api_key_invalid"


def test_a_batch_waits_for_the_tokens_of_its_key(mesh: Mesh) -> None:
    limited = Caller(mesh, "limited", KeyLimits(tokens_per_day=25))
    made = limited.create(*(line(str(number)) for number in range(20)))

    def counts() -> int:
        found = limited.client.batches.retrieve(made.id).request_counts
        return found.completed if found is not None else 0

    def used() -> int:
        return tokens_spent(mesh.state / "gateway" / FILE_NAME, 0).get(limited.key.key_id, 0)

    wait_until(lambda: counts() >= 3 and used() == 10 * counts(), "its tokens are used up")
    # Those that were under way when they ended, and no others.
    assert 3 <= counts() <= 3 + 4
    limited.client.batches.cancel(made.id)
    assert limited.ended(made).status == "cancelled"
