"""How far a group is behind, and what it refused, on the real Kafka."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from services.kit.bus.consumer import KafkaEventConsumer
from services.kit.bus.metrics import ConsumerMetrics
from services.kit.bus.port import Delivery
from services.kit.bus.topics import Topic
from services.kit.errors import InvalidArgumentError
from tests.contract.bus.conftest import KafkaBus
from tests.waiting import wait_until

pytestmark = pytest.mark.real


class Slow:
    """Takes each batch when the test lets it, and refuses what is bad."""

    def __init__(self) -> None:
        self.pace = threading.Semaphore(0)

    def handle(self, batch: Sequence[Delivery]) -> None:
        self.pace.acquire()
        if any(delivery.value == b"bad" for delivery in batch):
            raise InvalidArgumentError("it is bad")


def test_lag_and_dead_letters_are_metrics(kafka_bus: KafkaBus) -> None:
    topic = Topic(f"test.{uuid.uuid4().hex}", 2, 3_600_000, "any", "test events")
    kafka_bus.create(topic)
    registry, handler = CollectorRegistry(), Slow()
    metrics = ConsumerMetrics(registry)

    def value(name: str) -> float | None:
        return registry.get_sample_value(name, {"group": topic.name, "topic": topic.name})

    for number in range(100):
        kafka_bus.put(topic, None, b"bad" if number == 50 else b"good", ())
    member = KafkaEventConsumer(
        kafka_bus.bootstrap, topic.name, [topic], handler, kafka_bus.publisher, metrics=metrics, max_batch=1
    )
    member.start()
    try:
        looks = itertools.count()

        def behind() -> float | None:
            # Slowly enough that some are left when the lag is measured, which is every few seconds.
            if next(looks) % 10 == 0:
                handler.pace.release()
            return value("bus_consumer_lag")

        assert 0 < wait_until(behind, "a lag", 60) < 100
        handler.pace.release(1000)
        wait_until(lambda: value("bus_consumer_lag") == 0 or None, "no lag", 60)
        assert wait_until(lambda: value("bus_dead_letters_total"), "a dead letter", 60) == 1
    finally:
        handler.pace.release(1000)
        member.stop()
