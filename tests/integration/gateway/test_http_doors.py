"""The other HTTP doors: records, feedback, health, metrics; and bad input at all of them."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tidemill.pipeline.v1.pipeline_service_pb2 import FEEDBACK_SIGNAL_EDITED

from gateway.http.errors import ErrorBody, V2ErrorBody
from gateway.keys.key import KeyLimits, Role
from tests.integration.gateway.conftest import Mesh
from tests.waiting import wait_until


def test_records(mesh: Mesh, http: httpx.Client) -> None:
    record = {"source": "tickets", "text": "héllo", "attributes": {"label": "a"}, "event_time": "2026-01-02T03:04:05Z"}
    answer = http.post("/v1/records", json={"records": [record, {"source": "s", "text": "t", "record_id": "mine"}]})
    assert answer.json() == {"record_ids": ["rec_0", "mine"]}
    seen = mesh.peers.seen.requests[-1]
    assert (seen.records[0].text, dict(seen.records[0].attributes)) == ("héllo", {"label": "a"})
    assert seen.records[0].event_time.ToJsonString() == "2026-01-02T03:04:05Z"
    assert seen.request_id


def test_texts_are_classified_in_a_line(http: httpx.Client) -> None:
    found = http.post("/v1/predict", json={"model": "reviews", "texts": ["很好", "很差"]})
    assert found.status_code == 200, found.text
    answer = found.json()
    assert answer["model_version"].startswith("models/reviews/versions/")
    assert [item["label"] for item in answer["predictions"]] == ["positive", "positive"]
    for item in answer["predictions"]:
        assert item["answer"].startswith("answers/")
        assert item["score"] == max(item["scores"].values())
    for model, status, code in (("nothing", 404, "model_not_found"), ("headlines", 400, "wrong_task")):
        refused = http.post("/v1/predict", json={"model": model, "texts": ["a"]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)


def test_a_cut_text_is_reported_or_refused(http: httpx.Client) -> None:
    texts = ["short", "long text"]
    found = http.post("/v1/predict", json={"model": "reviews", "texts": texts}).json()["predictions"]
    assert [(item["prompt_tokens"], item["truncated"], item["truncated_tokens"]) for item in found] == [
        (5, False, 0),
        (9, True, 2),
    ]
    for path, name in (("/v1/predict", "texts"), ("/v1/embeddings", "input")):
        refused = http.post(path, json={"model": "reviews", name: texts, "truncate": False})
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (400, "text_too_long", f"{name}[1]")
        assert f"`{name}[1]` has 11 tokens, and models/reviews/versions/1 reads 9." in error["message"]


def test_feedback_by_the_completions_id(mesh: Mesh, http: httpx.Client) -> None:
    for answer in ("answers/01jtest", "01jtest"):
        body = {"answer": answer, "rating": -1, "correction": "Better"}
        found = http.post("/v1/feedback", json=body, headers={"idempotency-key": "once"})
        assert found.json()["answer"] == "answers/01jtest"
        seen = mesh.peers.seen.requests[-1]
        assert (seen.rating, seen.correction, seen.request_id) == (-1.0, "Better", "once")
        assert (found.status_code, "warning" in found.json()) == (200, False)


def test_feedback_may_be_a_label_a_comment_or_what_the_person_did(mesh: Mesh, http: httpx.Client) -> None:
    body = {"answer": "01jtest", "label": "negative", "comment": "ironic", "episode": "e1", "signal": "edited"}
    assert http.post("/v1/feedback", json=body).status_code == 200
    seen = mesh.peers.seen.requests[-1]
    assert (seen.label, seen.comment, seen.episode, seen.rating) == ("negative", "ironic", "e1", 0.0)
    assert seen.signal == FEEDBACK_SIGNAL_EDITED
    judgements = [{"answer": "01jtest", "signal": "accepted", "request_id": "r1"}, {"answer": "b", "rating": 1}]
    found = http.post("/v1/feedback/batch", json={"judgements": judgements})
    assert [item["answer"] for item in found.json()["feedback"]] == ["answers/01jtest", "answers/b"]
    batch = mesh.peers.seen.requests[-1].judgements
    assert [(item.request_id, item.rating) for item in batch] == [("r1", 0.0), ("", 1.0)]
    refused = http.post("/v1/feedback/batch", json={"judgements": [*judgements, {"answer": "c"}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "judgements[2].rating")


def test_feedback_on_an_answer_that_is_not_known_says_so(http: httpx.Client) -> None:
    found = http.post("/v1/feedback", json={"answer": "answers/never", "rating": 1})
    assert found.status_code == 202
    assert "No answer with this id" in found.json()["warning"]


@pytest.mark.parametrize("path", ["/v1/models", "/v2", "/healthz", "/v2/health/live", "/v2/models/echo/ready", "/docs"])
def test_head_is_get_without_its_body(http: httpx.Client, path: str) -> None:
    got, head = http.get(path), http.head(path)
    assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers.get("content-length") == got.headers.get("content-length")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("HEAD", "/v1/records", "POST"),
        ("OPTIONS", "/v1/records", "POST"),
    ],
)
def test_a_wrong_method_is_refused_and_the_right_ones_named(
    http: httpx.Client, method: str, path: str, allowed: str
) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_pages_of_configured_origins_may_call(mesh: Mesh) -> None:
    def ask(origin: str, method: str = "POST") -> httpx.Response:
        headers = {
            "origin": origin,
            "access-control-request-method": method,
            "access-control-request-headers": "authorization,content-type",
        }
        return httpx.options(f"http://{mesh.http}/v1/chat/completions", headers=headers)

    answer = ask("https://app.example.com")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert ask("http://localhost:3000").status_code == 200
    for refused in (ask("https://evil.example.com"), ask("https://app.example.com", "DELETE")):
        assert refused.status_code == 400
    unknown = httpx.get(f"http://{mesh.http}/v1/models", headers={"origin": "https://app.example.com"})
    assert unknown.status_code == 401  # and the page may read why
    assert unknown.headers["access-control-allow-origin"] == "https://app.example.com"


def test_a_redirect_names_no_host_and_no_scheme(http: httpx.Client) -> None:
    answer = http.get("/v1/models/?a=b", headers={"host": "public.example.com"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/v1/models?a=b")


def test_statistics_of_every_model_and_refusal_of_versions_that_do_not_exist(http: httpx.Client) -> None:
    found = http.get("/v2/models/stats").json()
    assert [model["name"] for model in found["model_stats"]] == ["echo", "headlines", "m", "reviews", "writer"]
    for path, status, body in (
        ("models/echo/versions/x/ready", 404, {"name": "echo", "ready": False}),
        ("models/echo/versions/1/ready", 200, {"name": "echo", "ready": True}),
        ("health/live", 200, {"live": True}),
        ("health/ready", 200, {"ready": True}),
    ):
        answer = http.get(f"/v2/{path}")
        assert (answer.status_code, answer.json()) == (status, body)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies_are_read_on_every_route(http: httpx.Client, encoding: str) -> None:
    def sent(path: str, body: Any) -> httpx.Response:
        plain = json.dumps(body).encode()
        data = gzip.compress(plain) if encoding == "gzip" else zlib.compress(plain)
        return http.post(path, content=data, headers={"content-encoding": encoding})

    records = {"records": [{"source": "s", "text": "t"}]}
    chat = {"model": "headlines", "messages": [{"role": "user", "content": "x"}]}
    tensor = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1], "data": [1]}]}
    for path, body in (
        ("/v1/records", records),
        ("/v1/chat/completions", chat),
        ("/v1/feedback", {"answer": "01jtest", "rating": 1}),
        ("/v2/models/echo/infer", tensor),
    ):
        assert sent(path, body).status_code == 200, path
    assert http.post("/v1/records", content=b"{}", headers={"content-encoding": encoding}).status_code == 400
    assert http.post("/v1/records", content=b"{}", headers={"content-encoding": "br"}).status_code == 415


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/records", {"records": []}, "records"),
        ("/v1/records", {"records": [{"source": "s", "text": "t", "colour": "red"}]}, "records[0].colour"),
        ("/v1/records", {"records": [{"source": "s", "text": 3}]}, "records[0].text"),
        ("/v1/records", {"records": [{"source": "s", "text": "t", "event_time": "noon"}]}, "records[0].event_time"),
        ("/v1/records", {"records": [{"source": "NOT OK", "text": "t"}]}, "records[0].source"),
        ("/v1/predict", {"model": "reviews"}, "texts"),
        ("/v1/predict", {"model": "reviews", "texts": ["a", ""]}, "texts[1]"),
        ("/v1/predict", {"model": "reviews", "texts": ["a\0b"]}, "texts[0]"),
        ("/v1/predict", {"model": "reviews", "texts": ["a"] * 257}, "texts"),
        ("/v1/feedback", {"answer": "answers/a"}, "rating"),
        ("/v1/feedback", {"answer": "answers/a", "rating": 2}, "rating"),
        ("/v1/feedback", {"answer": "answers/a b", "rating": 1}, "answer"),
        ("/v1/chat/completions", {"model": "headlines"}, "messages"),
        (
            "/v1/chat/completions",
            {"model": "headlines", "messages": [{"role": "user", "content": "a\0b"}]},
            "messages[0].content",
        ),
        (
            "/v1/chat/completions",
            {"model": "headlines", "messages": [{"role": "user", "content": "a", "colour": "red"}]},
            "messages[0].colour",
        ),
        ("/v1/chat/completions", {"model": "headlines", "messages": [{"role": "robot"}]}, "messages[0].role"),
    ],
)
def test_bad_input_is_named(http: httpx.Client, path: str, body: Any, param: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff\xfe", b'"x"'])
def test_a_body_that_is_not_a_json_object_is_refused(http: httpx.Client, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/records", "/v1/feedback", "/v2/models/echo/infer"):
        assert http.post(path, content=body).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [{"name": "X", "datatype": "FP32", "shape": [2], "data": [1]}]},
        {"inputs": [{"name": "X", "datatype": "INT8", "shape": [1], "data": [300]}]},
        {"inputs": [{"name": "X", "datatype": "INT8", "shape": [1], "data": [1.5]}]},
        {"inputs": [{"name": "X", "datatype": "FP99", "shape": [1], "data": [1]}]},
        {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}]},
        {"inputs": [{"name": "X", "datatype": "FP32", "shape": [-1], "data": []}]},
        {"inputs": [{"datatype": "FP32", "shape": [1], "data": [1]}]},
        {"inputs": {}},
        {"inputs": [], "parameters": {"shared_memory_region": "r"}},
        {"inputs": [{"name": "X", "datatype": "FP32", "shape": [2**31 - 1] * 600, "data": [1]}]},
        {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 1], "data": [[[1]]]}]},
        {"inputs": [{"name": "X", "datatype": "BOOL", "shape": [1], "data": ["no"]}]},
    ],
)
def test_broken_tensors_are_refused(http: httpx.Client, body: Any) -> None:
    answer = http.post("/v2/models/echo/infer", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_tensors_nested_deeper_than_python_goes_are_refused(http: httpx.Client) -> None:
    head = '{"inputs":[{"name":"X","datatype":"FP32","shape":[1],"data":'
    answer = http.post("/v2/models/echo/infer", content=head + "[" * 900 + "1" + "]" * 900 + "}]}")
    assert answer.status_code == 400, answer.text


def test_a_caller_that_leaves_while_it_sends_does_not_count_as_our_fault(mesh: Mesh, http: httpx.Client) -> None:
    endpoint = "POST /v1/records"
    host, _, port = mesh.http.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/records HTTP/1.1\r\nhost: x\r\nx-api-key: {mesh.key}\r\ncontent-length: 100\r\n\r\n"
        connection.sendall(head.encode() + b'{"records"')

    def counted() -> str:
        lines = httpx.get(f"http://{mesh.http}/metrics").text.splitlines()
        return "\n".join(line for line in lines if line.startswith("request") and endpoint in line)

    def no_fault() -> None:
        assert 'code="INTERNAL"' not in counted()

    wait_until(lambda: 'code="CANCELLED"' in counted(), "a count of the call", meanwhile=no_fault)
    assert "request_errors_total" not in counted()


def test_binary_sizes_must_agree(http: httpx.Client) -> None:
    head = b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}'
    for length, tail in ((len(head), b"\0\0\0\0\0"), (len(head), b"\0"), (len(head) + 9, b"\0\0\0\0")):
        answer = http.post(
            "/v2/models/echo/infer", content=head + tail, headers={"Inference-Header-Content-Length": str(length)}
        )
        assert answer.status_code == 400


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").status_code == 404
    assert http.get("/v1/chat/completions").status_code == 405


def test_a_failure_of_the_service_is_ours_and_json(http: httpx.Client) -> None:
    answer = http.post(
        "/v1/chat/completions", json={"model": "headlines", "messages": [{"role": "user", "content": "fail"}]}
    )
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"


def test_health_needs_no_key_and_reports_on_every_part(mesh: Mesh) -> None:
    body = httpx.get(f"http://{mesh.http}/healthz").json()
    assert body["status"] == "degraded"
    assert body["parts"]["ingest"]["status"] == "serving"
    assert body["parts"]["training"]["status"] == "unavailable"


def test_a_model_that_is_not_ready_does_not_count_as_our_failure(mesh: Mesh, http: httpx.Client) -> None:
    assert http.get("/v2/models/nothing/ready").status_code == 404
    text = httpx.get(f"http://{mesh.http}/metrics").text
    assert 'request_errors_total{endpoint="GET /v2/models/{model}/ready"' not in text


def test_metrics_name_routes_not_paths(mesh: Mesh, http: httpx.Client) -> None:
    http.get("/v1/models/headlines")
    http.get("/v1/models/some-unseen-name")
    text = httpx.get(f"http://{mesh.http}/metrics").text
    assert 'request_latency_bucket{endpoint="GET /v1/models/{model}",le="0.1",service_name="gateway"}' in text
    assert "some-unseen-name" not in text
    assert 'error_rate{service_name="gateway"}' in text


def test_document_lists_the_doors(mesh: Mesh) -> None:
    document = httpx.get(f"http://{mesh.http}/openapi.json").json()
    paths = document["paths"]
    assert document["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    body = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "messages" in body["required"]
    assert {"/v1/records", "/v1/feedback", "/v2/models/{model}/infer", "/healthz"} <= paths.keys()


def test_what_can_fail_is_described_and_fails_as_described(mesh: Mesh, http: httpx.Client) -> None:
    document = httpx.get(f"http://{mesh.http}/openapi.json").json()
    for path, operations in document["paths"].items():
        if path.startswith(("/v1/", "/v2/")):
            for operation in operations.values():
                assert {"400", "401", "403", "404", "409", "413", "429", "503", "default"} <= operation[
                    "responses"
                ].keys()
    _, rated = mesh.store.create("rated", {Role.PREDICT}, limits=KeyLimits(requests_per_s=0.01))
    limited = {"x-api-key": rated}
    chat = {"model": "nothing", "messages": [{"role": "user", "content": "x"}]}
    assert http.get("/v1/models", headers=limited).status_code == 200
    _, reader = mesh.store.create("reader", {Role.READ})
    for path, sent, status in (
        ("/v1/chat/completions", {"json": {}}, 400),
        ("/v1/chat/completions", {"json": chat, "headers": {"x-api-key": "no"}}, 401),
        ("/v1/chat/completions", {"json": chat, "headers": {"x-api-key": reader}}, 403),
        ("/v1/chat/completions", {"json": chat}, 404),
        ("/v1/chat/completions", {"json": chat, "headers": limited}, 429),
        ("/v1/predict", {"content": b"x" * (66 << 20)}, 413),
        ("/v2/models/nothing/infer", {"json": {"inputs": []}}, 404),
        ("/v2/models/echo/infer", {"json": {}, "headers": limited}, 429),
    ):
        answer = http.post(path, timeout=60, **sent)
        assert answer.status_code == status, (path, answer.text)
        kind = V2ErrorBody if path.startswith("/v2") else ErrorBody
        assert kind.model_validate(answer.json()).model_dump() == answer.json()
        described = document["paths"][path.replace("nothing", "{model}").replace("echo", "{model}")]["post"][
            "responses"
        ]
        if status == 429:
            assert int(answer.headers["retry-after"]) > 1
            assert "Retry-After" in described["429"]["headers"]
        schema = described[str(status)]["content"]["application/json"]["schema"]
        assert schema["$ref"].rpartition("/")[2] == kind.__name__


def test_large_bodies_are_refused(mesh: Mesh, http: httpx.Client) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(65):
            yield b"x" * (1 << 20)

    answer = http.post("/v1/records", content=parts(), timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    answer = http.post("/v2/models/echo/infer", content=b"x" * (66 << 20), timeout=60)
    assert answer.status_code == 413


def _start(state: Path, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gateway"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TIDEMILL_STATE": str(state),
            "TIDEMILL_DATABASE_URL": f"sqlite:///{state / 'gateway.sqlite'}",
            "TIDEMILL_BIND": "127.0.0.1:0",
            "TIDEMILL_HTTP_BIND": "127.0.0.1:0",
            "TIDEMILL_KAFKA_BOOTSTRAP": "127.0.0.1:1",
            **settings,
        },
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_process_starts_without_its_peers_and_ends_in_order(tmp_path: Path) -> None:
    process = _start(tmp_path)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "gateway serves on port" in line:
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(30) == 0, "".join(lines) + rest
    assert "gateway ended" in rest
    key = tmp_path / "api-key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text().strip() not in "".join(lines) + rest


def test_a_taken_port_is_reported_in_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = _start(tmp_path, TIDEMILL_HTTP_BIND=f"127.0.0.1:{taken.getsockname()[1]}")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "TIDEMILL_HTTP_BIND" in errors
    assert "Traceback" not in errors


def test_the_page_of_the_api_needs_nothing_from_elsewhere_and_no_key(mesh: Mesh) -> None:
    with httpx.Client(base_url=f"http://{mesh.http}") as stranger:
        page = stranger.get("/docs").text
        wanted = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""", page)
        assert any(path.endswith(".js") for path in wanted)
        assert "/openapi.json" in wanted
        for path in wanted:
            assert path.startswith("/"), f"{path} is someone else's"
            assert stranger.get(path).status_code == 200, path
        assert stranger.get("/static-offline-docs/../v1/models").status_code == 401
        assert stranger.get("/static-offline-docs/%2e%2e/v1/models").status_code in (401, 404)
