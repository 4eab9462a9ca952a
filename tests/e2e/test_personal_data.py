"""A planted secret goes in at every door, well-formed and not; logs, spans and headers must not hold it anywhere."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from kafka import KafkaProducer
from tidemill.cleaning.v1 import cleaning_service_pb2 as cleaning_pb
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceStub
from tidemill.ingest.v1 import ingest_service_pb2 as ingest_pb
from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tidemill.ingest.v1.record_pb2 import Record

from services.kit.bus import topics
from services.kit.bus.topics import DEAD_LETTERS, INBOUND, TOPICS
from tests.e2e.conftest import Mesh
from tests.topics import read_all
from tests.waiting import wait_until

SOURCE = "planted"
# Of what people sent these topics hold the content, until cleaning has masked it or a person has erased it.
CONTENT = {
    topics.INBOUND,
    topics.RECORDS_RAW,
    topics.RECORDS_CLEAN,
    topics.RECORDS_REJECTED,
    topics.DEAD_LETTERS,
    topics.FEEDBACK,
}
MARK = "planted.example.com"
_PAGE = 2_000


def mark_of(place: str) -> str:
    """An address that no other test has; `place` says where it was planted."""
    return f"{place}.{uuid.uuid4().hex[:12]}@{MARK}"


def by_http(mesh: Mesh) -> None:
    """At the HTTP doors: as texts, in broken bodies, as users, in what is refused."""
    base = f"http://{mesh.stack.address('gateway_http')}"
    headers = {"authorization": f"Bearer {mesh.key}", "x-user-id": mark_of("http-user")}
    with httpx.Client(base_url=base, headers=headers, timeout=30, trust_env=False) as http:
        for model in ("reviews", "no-such-model"):
            http.post("/v1/predict", json={"model": model, "texts": [mark_of("predict")], "user": mark_of("user")})
            http.post("/v1/embeddings", json={"model": model, "input": mark_of("embeddings")})
            messages = [{"role": "user", "content": mark_of("chat")}]
            http.post("/v1/chat/completions", json={"model": model, "messages": messages, "user": mark_of("chat-user")})
            http.post("/v1/responses", json={"model": model, "input": mark_of("responses")})
            http.post(f"/v2/models/{model}/infer", json={"inputs": [{"name": "TEXT", "data": [mark_of("infer")]}]})
        for path in ("/v1/predict", "/v1/chat/completions", "/v1/records", "/v1/feedback", "/v2/models/reviews/infer"):
            assert http.post(path, content=f'{{"text": "{mark_of("broken")}').status_code == 400
            assert http.post(path, content=f"\xff{mark_of('latin')}".encode("latin-1")).status_code == 400
            assert http.post(path, json={"model": 3, "text": mark_of("wrong"), "texts": mark_of("type")}).is_error
        record = {"source": SOURCE, "text": mark_of("record"), "attributes": {"from": mark_of("attribute")}}
        assert http.post("/v1/records", json={"records": [record]}).status_code == 200
        assert http.post(
            "/v1/records", json={"records": [record | {"source": "no source", "x": mark_of("x")}]}
        ).is_error
        for said in ({"comment": mark_of("comment"), "rating": -1}, {"correction": mark_of("correction")}):
            http.post(
                "/v1/feedback", json={"answer": f"answers/{uuid.uuid4().hex}", "author": mark_of("author"), **said}
            )


def by_grpc(mesh: Mesh) -> None:
    """At the gRPC door: records, refused ones, and texts to clean."""
    with mesh.channel() as channel:
        ingest, cleaning = IngestServiceStub(channel), CleaningServiceStub(channel)
        # Not in its id: an identity is named in headers; `mask: edge` masks that as well.
        records = [Record(source=SOURCE, text=mark_of("grpc"), attributes={"from": mark_of("grpc-attribute")})]
        ingest.IngestRecords(ingest_pb.IngestRecordsRequest(records=records), metadata=mesh.metadata, timeout=30)
        refused = Record(source=SOURCE, text=mark_of("refused"), attributes={"Not Valid": mark_of("name")})
        request = ingest_pb.IngestRecordsRequest(records=[refused])
        with pytest.raises(grpc.RpcError):
            ingest.IngestRecords(request, metadata=mesh.metadata, timeout=30)
        clean = cleaning_pb.CleanTextRequest(text=mark_of("clean"))
        clean.operators.add(name="mask_pii")
        assert cleaning.CleanText(clean, metadata=mesh.metadata, timeout=30).text == "[EMAIL]"
        clean.operators.add(name="regex_replace").params.update(
            {"pattern": f"({mark_of('pattern')}", "replacement": ""}
        )
        with pytest.raises(grpc.RpcError):
            cleaning.CleanText(clean, metadata=mesh.metadata, timeout=30)


def by_kafka(mesh: Mesh) -> None:
    """As events of another producer: one that is accepted, and one of each kind that becomes a dead letter."""
    names = {"ce_source": "/planted", "ce_type": "t", "ce_specversion": "1.0", "content-type": "application/json"}
    good = json.dumps({"source": SOURCE, "text": mark_of("event"), "attributes": {"to": mark_of("event-to")}})
    values = [
        (good, names),
        (f"not an event {mark_of('poison')}", {}),
        (f'{{"source": "{SOURCE}", "text": "{mark_of("torn")}', names),
        (json.dumps({"source": "no source", "text": mark_of("bad-source")}), names),
        (json.dumps({"source": SOURCE, "text": [mark_of("list")]}), names),
        (json.dumps({"source": SOURCE, "text": "x", "attributes": {"Not Valid": mark_of("key")}}), names),
    ]
    producer = KafkaProducer(bootstrap_servers=mesh.stack.kafka_bootstrap)
    for number, (value, headers) in enumerate(values):
        said = {**headers, "ce_id": f"planted-{uuid.uuid4().hex}-{number}"} if headers else {}
        producer.send(INBOUND.name, value=value.encode(), headers=[(k, v.encode()) for k, v in said.items()]).get(30)
    producer.close()


def by_file(mesh: Mesh) -> None:
    """As a file with a good line, lines that cannot be read, and one that is not a record."""
    path = mesh.scratch / "planted.jsonl"
    lines = [
        json.dumps({"id": "1", "text": mark_of("line"), "from": mark_of("line-from")}),
        f'{{"text": "{mark_of("broken-line")}',
        json.dumps({"text": 7, "name": mark_of("number")}),
        json.dumps([mark_of("array")]),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    file = mesh.scratch / "planted.yaml"
    source = {"source": SOURCE, "json_lines": {"uri": str(path), "id_field": "id"}}
    file.write_text(
        json.dumps(
            {"name": "planted", "sources": [source], "dataset": {"name": "datasets/planted", "operators": ["mask_pii"]}}
        )
    )
    mesh.tidemill("dataset", "build", str(file))


def by_command_line(mesh: Mesh) -> None:
    """As what an operator types about a person."""
    mesh.tidemill("predict", "reviews", mark_of("cli"), check=False)
    mesh.tidemill("explain", mark_of("explain"), "--source", SOURCE, check=False)
    mesh.tidemill("erase", "--user", mark_of("erase"), "--yes", check=False)


def around(text: str) -> str:
    """What stands before a planted mark and after it, to find who wrote it."""
    at = text.index(MARK)
    return text[max(0, at - 400) : at + 100]


def documents(mesh: Mesh) -> Iterator[str]:
    """Everything that Elasticsearch holds."""
    with httpx.Client(base_url=mesh.stack.elasticsearch_url, timeout=60, trust_env=False) as http:
        body: dict[str, Any] = {"size": _PAGE, "sort": ["_doc"]}
        page = http.post("/*/_search", params={"scroll": "2m"}, json=body).raise_for_status().json()
        while hits := page["hits"]["hits"]:
            yield from (json.dumps(hit, ensure_ascii=False) for hit in hits)
            more = {"scroll": "2m", "scroll_id": page["_scroll_id"]}
            page = http.post("/_search/scroll", json=more).raise_for_status().json()


def test_what_people_send_is_in_no_log_span_or_header(mesh: Mesh) -> None:
    for plant in (by_http, by_grpc, by_kafka, by_file, by_command_line):
        plant(mesh)
    bootstrap = mesh.stack.kafka_bootstrap
    wait_until(
        lambda: sum(MARK.encode() in value for _, value in read_all(bootstrap, DEAD_LETTERS)) >= 6, "the dead letters"
    )
    # What was planted has passed when this record, sent last, is found by a search for its trace.
    trace_id = uuid.uuid4().hex
    metadata = (*mesh.metadata, ("traceparent", f"00-{trace_id}-{uuid.uuid4().hex[:16]}-01"))
    with mesh.channel() as channel:
        request = ingest_pb.IngestRecordsRequest(records=[Record(source=SOURCE, text=f"the last one {trace_id}")])
        IngestServiceStub(channel).IngestRecords(request, metadata=metadata, timeout=30)
    wait_until(lambda: "cleaning" in mesh.tidemill("trace", trace_id, "--json", check=False).stdout)

    assert not [around(text) for text in documents(mesh) if MARK in text]
    for log in sorted((mesh.stack.state / "logs").glob("*.log*")):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        assert not [around(line) for line in lines if MARK in line], log.name

    for topic in TOPICS:
        for headers, value in read_all(bootstrap, topic):
            assert not any(MARK.encode() in header for header in headers.values()), (topic.name, headers)
            assert topic in CONTENT or MARK.encode() not in value, (topic.name, value)
