"""Messages of foreign producers on the real Kafka: other codecs, broken headers, aborted transactions."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import kafka.codec
import kafka.record.default_records
import pyarrow
import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient

from services.kit.bus.consumer import KafkaEventConsumer
from services.kit.bus.port import Delivery
from services.kit.bus.topics import DEAD_LETTERS, Topic
from tests.contract.bus.conftest import KafkaBus
from tests.waiting import wait_until

pytestmark = pytest.mark.real


class RecordingHandler:
    def __init__(self) -> None:
        self.values: list[bytes] = []

    def handle(self, batch: Sequence[Delivery]) -> None:
        self.values += [delivery.value for delivery in batch]

    def wait_for(self, value: bytes) -> None:
        wait_until(lambda: value in self.values, f"{value!r}")


@contextmanager
def consumed(bus: KafkaBus, topic: Topic) -> Iterator[RecordingHandler]:
    """A handler that consumes the topic."""
    handler = RecordingHandler()
    member = KafkaEventConsumer(bus.bootstrap, topic.name, [topic], handler, dead_letters=bus.publisher)
    member.start()
    try:
        yield handler
    finally:
        member.stop()


@pytest.fixture
def topic(kafka_bus: KafkaBus) -> Topic:
    """A topic with one partition, so that a stalled partition fails the test."""
    made = Topic(f"test.{uuid.uuid4().hex}", 1, 3_600_000, "any", "test events")
    kafka_bus.create(made)
    return made


class Latin1Name(str):
    """The name of a header, encoded as Latin-1 instead of UTF-8."""

    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        return b"gr\xfc\xdfe"


def test_what_a_producer_packs_otherwise_is_read(
    kafka_bus: KafkaBus, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pack(data: bytes) -> bytes:
        packed: bytes = pyarrow.compress(data, codec="zstd", asbytes=True)
        return packed

    # The producer uses a codec that our consumers cannot decompress.
    with monkeypatch.context() as patch:
        patch.setattr(kafka.codec, "has_zstd", lambda: True)
        _, attributes = KafkaProducer._COMPRESSORS["zstd"]
        patch.setitem(KafkaProducer._COMPRESSORS, "zstd", (lambda: True, attributes))
        patch.setattr(kafka.record.default_records, "zstd_encode", pack)
        producer = KafkaProducer(bootstrap_servers=kafka_bus.bootstrap, compression_type="zstd")
        producer.send(topic.name, value=b"packed" * 100, headers=[(Latin1Name("x"), b"")]).get(30)
        producer.close()
    with consumed(kafka_bus, topic) as handler:
        handler.wait_for(b"packed" * 100)


def test_what_no_client_can_read_becomes_a_dead_letter_and_stalls_no_one(kafka_bus: KafkaBus) -> None:
    topic = Topic(f"test.{uuid.uuid4().hex}", 1, 3_600_000, "any", "test events")
    # The topic was created by others, with other settings than ours: the broker does not recompress its messages.
    admin = KafkaAdminClient(bootstrap_servers=kafka_bus.bootstrap)
    admin.create_topics({topic.name: {"num_partitions": 1}})
    admin.close()
    for value, headers in ((b"before", []), (b"unreadable", [(Latin1Name("x"), b"")]), (b"behind", [])):
        kafka_bus.put(topic, None, value, headers)
    with consumed(kafka_bus, topic) as handler:
        handler.wait_for(b"behind")
    assert handler.values == [b"before", b"behind"]
    (letter,) = [d for d in kafka_bus.messages(DEAD_LETTERS) if d.headers["dlq_topic"] == topic.name.encode()]
    assert letter.headers["dlq_reason"] == b"UNREADABLE_MESSAGE"
    assert letter.headers["dlq_offset"] == b"1"
    assert b"offsets 1 to 1" in letter.headers["dlq_message"]


def test_what_was_never_committed_is_never_seen(kafka_bus: KafkaBus, topic: Topic) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka_bus.bootstrap, transactional_id=topic.name)
    producer.init_transactions()
    for value, end in ((b"aborted", producer.abort_transaction), (b"committed", producer.commit_transaction)):
        producer.begin_transaction()
        producer.send(topic.name, value=value).get(30)
        end()
    producer.close()
    with consumed(kafka_bus, topic) as handler:
        handler.wait_for(b"committed")
    assert handler.values == [b"committed"]
