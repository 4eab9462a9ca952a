"""Foreign producers on Kafka: their CloudEvent is cleaned, and all of it is one trace."""

from __future__ import annotations

import json
import secrets
import uuid
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from tidemill.cleaning.v1 import cleaning_service_pb2 as pb
from tidemill.cleaning.v1.cleaning_events_pb2 import RecordCleaned
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceStub
from tidemill.ingest.v1 import ingest_service_pb2 as ingest_pb
from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tidemill.ingest.v1.record_pb2 import Record

from services.kit.bus.topics import DEAD_LETTERS, INBOUND, RECORDS_CLEAN
from tests.e2e.conftest import Mesh
from tests.waiting import wait_until

SOURCE = "support-tickets"
DATASET = "datasets/tickets"


@pytest.fixture(scope="module")
def dataset(mesh: Mesh) -> str:
    """A data set that takes the foreign records."""
    request = pb.PutDatasetRequest(name=DATASET)
    request.spec.sources.append(SOURCE)
    for name in ("fix_unicode", "strip_html", "normalize_whitespace", "mask_pii"):
        request.spec.operators.add(name=name)
    with mesh.channel() as channel:
        CleaningServiceStub(channel).PutDataset(request, metadata=mesh.metadata, timeout=30)
    return DATASET


def new_consumer(mesh: Mesh, topic: str) -> KafkaConsumer:
    return KafkaConsumer(
        topic,
        bootstrap_servers=mesh.stack.kafka_bootstrap,
        group_id=f"test-{uuid.uuid4().hex}",
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )


def cleaned_event(consumer: KafkaConsumer, words: str) -> RecordCleaned | None:
    for messages in consumer.poll(timeout_ms=500).values():
        for message in messages:
            event = RecordCleaned.FromString(message.value)
            if words in event.text:
                return event
    return None


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_a_foreign_cloudevent_shows_up_cleaned(mesh: Mesh, dataset: str, mode: str) -> None:
    mark, trace_id = uuid.uuid4().hex, secrets.token_hex(16)
    data = {"source": SOURCE, "text": f"<p>The   printer {mark} is&nbsp;broken, call me at jane@example.com</p>"}
    attributes = {"id": uuid.uuid4().hex, "source": "/tickets", "type": "com.example.ticket", "specversion": "1.0"}
    headers = [("traceparent", f"00-{trace_id}-{secrets.token_hex(8)}-01".encode())]
    value: dict[str, Any] = data
    if mode == "binary":
        headers += [(f"ce_{key}", text.encode()) for key, text in attributes.items()]
        headers.append(("content-type", b"application/json"))
    else:
        headers.append(("content-type", b"application/cloudevents+json"))
        value = {**attributes, "datacontenttype": "application/json", "data": data}
    producer = KafkaProducer(bootstrap_servers=mesh.stack.kafka_bootstrap)
    producer.send(INBOUND.name, value=json.dumps(value).encode(), headers=headers).get(30)
    producer.close()
    consumer = new_consumer(mesh, RECORDS_CLEAN.name)
    event = wait_until(lambda: cleaned_event(consumer, mark))
    consumer.close()
    assert event.dataset == dataset
    assert "<p>" not in event.text
    assert "jane@example.com" not in event.text
    assert f"The printer {mark} is broken" in event.text

    def services() -> set[str] | None:
        result = mesh.tidemill("trace", trace_id, "--json", check=False)
        found = {span["service"] for span in json.loads(result.stdout)["spans"]} if not result.returncode else set()
        return found if {"ingest", "cleaning"} <= found else None

    wait_until(services)


def test_one_trace_crosses_ingest_kafka_and_cleaning(mesh: Mesh, dataset: str) -> None:
    trace_id = secrets.token_hex(16)
    record = Record(source=SOURCE, text=f"A pushed ticket {uuid.uuid4().hex} about a slow door")
    metadata = (*mesh.metadata, ("traceparent", f"00-{trace_id}-{secrets.token_hex(8)}-01"))
    with mesh.channel() as channel:
        request = ingest_pb.IngestRecordsRequest(records=[record])
        IngestServiceStub(channel).IngestRecords(request, metadata=metadata, timeout=30)

    def spans() -> list[dict[str, Any]] | None:
        result = mesh.tidemill("trace", trace_id, "--json", check=False)
        found = json.loads(result.stdout)["spans"] if not result.returncode else []
        services = {span["service"] for span in found}
        return found if {"gateway", "ingest", "cleaning"} <= services else None

    kinds = {(span["service"], span["kind"]) for span in wait_until(spans)}
    assert ("ingest", "producer") in kinds
    assert ("cleaning", "consumer") in kinds


def test_a_poison_event_goes_to_the_dead_letters_and_stalls_no_one(mesh: Mesh, dataset: str) -> None:
    mark = uuid.uuid4().hex
    producer = KafkaProducer(bootstrap_servers=mesh.stack.kafka_bootstrap)
    producer.send(INBOUND.name, value=f"poison {mark} \xff".encode("latin-1"), partition=0).get(30)
    attributes = {"ce_id": mark, "ce_source": "/t", "ce_type": "t", "ce_specversion": "1.0"}
    headers = [(key, text.encode()) for key, text in attributes.items()] + [("content-type", b"application/json")]
    good = json.dumps({"source": SOURCE, "text": f"A good ticket {mark} behind the poison"}).encode()
    producer.send(INBOUND.name, value=good, headers=headers, partition=0).get(30)
    producer.close()
    letters, clean = new_consumer(mesh, DEAD_LETTERS.name), new_consumer(mesh, RECORDS_CLEAN.name)

    def letter() -> dict[str, bytes] | None:
        for messages in letters.poll(timeout_ms=500).values():
            for message in messages:
                if mark.encode() in message.value:
                    return dict(message.headers)
        return None

    headers_of = wait_until(letter)
    assert headers_of["dlq_topic"] == INBOUND.name.encode()
    assert headers_of["dlq_reason"]
    assert wait_until(lambda: cleaned_event(clean, mark)).dataset == dataset
    letters.close()
    clean.close()
