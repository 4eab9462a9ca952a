"""A member of a group on the real Kafka rejoins when its heartbeats have stopped."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from kafka import KafkaConsumer

from services.kit.bus.consumer import KafkaEventConsumer
from services.kit.bus.port import Delivery
from services.kit.bus.topics import Topic
from tests.contract.bus.conftest import KafkaBus
from tests.waiting import wait_for, wait_until

pytestmark = pytest.mark.real


class Counter:
    def __init__(self) -> None:
        self.values: list[bytes] = []

    def handle(self, batch: Sequence[Delivery]) -> None:
        self.values += [delivery.value for delivery in batch]


def test_a_membership_without_heartbeats_is_ended_and_begun_again(
    kafka_bus: KafkaBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class RecordingConsumer(KafkaConsumer):  # type: ignore[misc]
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            made.append(self)

    monkeypatch.setattr("services.kit.bus.consumer.KafkaConsumer", RecordingConsumer)
    topic = Topic(f"test.{uuid.uuid4().hex}", 1, 3_600_000, "any", "test events")
    kafka_bus.create(topic)
    handler = Counter()
    member = KafkaEventConsumer(
        kafka_bus.bootstrap, topic.name, [topic], handler, dead_letters=kafka_bus.publisher, heartbeat_patience_s=8
    )
    member.start()
    assert member.wait_assigned(30)
    # Simulates the bug of kafka-python.
    made[0]._coordinator._disable_heartbeat()
    wait_until(lambda: len(made) > 1, "a second membership")
    kafka_bus.put(topic, b"a", b"1", [])
    wait_for(lambda: handler.values, lambda values: values == [b"1"], "the event")
    member.stop()
