"""The real Kafka goes away for longer than a publication waits, and comes back."""

from __future__ import annotations

import time
import uuid

import pytest

from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.bus.topics import Topic
from services.kit.errors import UnavailableError
from tests.contract.bus.conftest import KafkaBus
from tests.contract.bus.test_bus import event
from tests.freezing import frozen

pytestmark = pytest.mark.real


def test_a_publisher_survives_a_broker_that_was_away(kafka_bus: KafkaBus) -> None:
    topic = Topic(f"test.{uuid.uuid4().hex}", 2, 3_600_000, "any", "test events")
    kafka_bus.create(topic)
    publisher = KafkaEventPublisher(kafka_bus.bootstrap, "test", delivery_timeout_s=4)
    publisher.publish(topic, [event("a", "before")])
    with frozen(kafka_bus.pid):
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(UnavailableError):
                publisher.publish(topic, [event("a", "meanwhile"), event("b", "meanwhile")])
            assert time.monotonic() - began < 20
    deadline = time.monotonic() + 30
    while True:
        try:
            publisher.publish(topic, [event("a", "after"), event("b", "after")])
            break
        except UnavailableError:
            assert time.monotonic() < deadline
    publisher.close()
    # What it refused it may have sent all the same.
    assert sorted(m.key or b"" for m in kafka_bus.messages(topic) if b"after" in m.value) == [b"a", b"b"]


def test_a_publisher_ends_while_its_broker_is_away(kafka_bus: KafkaBus) -> None:
    topic = Topic(f"test.{uuid.uuid4().hex}", 1, 3_600_000, "any", "test events")
    kafka_bus.create(topic)
    publisher = KafkaEventPublisher(kafka_bus.bootstrap, "test", delivery_timeout_s=4)
    publisher.publish(topic, [event("a", "before")])
    with frozen(kafka_bus.pid):
        with pytest.raises(UnavailableError):
            publisher.publish(topic, [event("a", "meanwhile")])
        publisher.close()
        with pytest.raises(UnavailableError):
            publisher.publish(topic, [event("a", "closed")])
