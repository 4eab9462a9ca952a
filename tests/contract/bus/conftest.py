"""The suite's buses: one in memory and the real Kafka."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from infra.stack.state import ChildState
from infra.stack.testing import brokers, running_child, running_parts
from services.kit.bus.brokers import ProducerClient
from services.kit.bus.consumer import KafkaEventConsumer
from services.kit.bus.kafka import KafkaEventPublisher, ensure_topics
from services.kit.bus.port import Delivery, EventHandler, OutgoingEvent
from services.kit.bus.topics import DEAD_LETTERS, Topic
from tests.contract.bus.memory_bus import MemoryBus
from tests.waiting import wait_until


class Member(Protocol):
    """A running consumer."""

    def start(self) -> None: ...
    def wait_assigned(self, timeout_s: float) -> bool: ...
    def stop(self, timeout_s: float = 20.0) -> None: ...


class Bus(Protocol):
    """What the suite needs of a bus."""

    def publish(self, topic: Topic, events: Sequence[OutgoingEvent]) -> None: ...
    def put(self, topic: Topic, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]]) -> None: ...
    def messages(self, topic: Topic) -> list[Delivery]: ...
    def consumer(self, group: str, topic: Topic, handler: EventHandler) -> Member: ...


class KafkaBus:
    """The real Kafka."""

    def __init__(self, state: Callable[[], ChildState], bootstrap: str, client: ProducerClient) -> None:
        self._state, self.bootstrap, self.client = state, bootstrap, client
        self.publisher = KafkaEventPublisher(brokers(bootstrap, client), "test")
        self._producer = KafkaProducer(bootstrap_servers=bootstrap, compression_type="gzip", max_request_size=64 << 20)

    @property
    def pid(self) -> int:
        found = self._state().pid
        assert found is not None
        return found

    def wait_until_alive(self) -> None:
        """Else tests that freeze it one after the other add up to what the supervisor takes for its end."""
        wait_until(lambda: self._state().failing_since is None, "a broker that answers its probe")

    def publish(self, topic: Topic, events: Sequence[OutgoingEvent]) -> None:
        self.publisher.publish(topic, events)

    def put(self, topic: Topic, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]]) -> None:
        self._producer.send(topic.name, key=key, value=value, headers=list(headers)).get(30)

    def messages(self, topic: Topic) -> list[Delivery]:
        consumer = KafkaConsumer(bootstrap_servers=self.bootstrap, isolation_level="read_committed")
        partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends: dict[Any, int] = consumer.end_offsets(partitions)
        found: list[Delivery] = []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(timeout_ms=500).values():
                for r in records:
                    headers = {name.lower(): value for name, value in r.headers}
                    found.append(Delivery(r.topic, r.partition, r.offset, r.key, r.value, headers))
        consumer.close()
        return found

    def consumer(self, group: str, topic: Topic, handler: EventHandler) -> Member:
        return KafkaEventConsumer(self.bootstrap, group, [topic], handler, dead_letters=self.publisher)

    def create(self, topic: Topic) -> None:
        ensure_topics(self.bootstrap, [topic, DEAD_LETTERS])

    def close(self) -> None:
        self.publisher.close()
        self._producer.close()


@pytest.fixture(scope="package")
def kafka_buses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, KafkaBus]]:
    """The real Kafka, started when the first test needs it, by each library that can send to it."""
    folder = tmp_path_factory.mktemp("stack")
    with running_parts({"kafka"}, folder) as stack:

        def state() -> ChildState:
            return running_child("kafka", folder)

        buses = {client.value: KafkaBus(state, stack.kafka_bootstrap, client) for client in ProducerClient}
        yield buses
        for bus in buses.values():
            bus.close()


@pytest.fixture
def kafka_bus(kafka_buses: dict[str, KafkaBus]) -> Iterator[KafkaBus]:
    """The real Kafka."""
    yield kafka_buses[ProducerClient.LIBRDKAFKA]
    kafka_buses[ProducerClient.LIBRDKAFKA].wait_until_alive()


@pytest.fixture(params=[pytest.param(client.value, marks=pytest.mark.real) for client in ProducerClient])
def each_kafka_bus(request: pytest.FixtureRequest, kafka_buses: dict[str, KafkaBus]) -> Iterator[KafkaBus]:
    """The real Kafka by each library in turn."""
    yield kafka_buses[request.param]
    kafka_buses[request.param].wait_until_alive()


@pytest.fixture(params=["memory", *(pytest.param(client.value, marks=pytest.mark.real) for client in ProducerClient)])
def bus(request: pytest.FixtureRequest) -> Bus:
    """Each bus in turn."""
    if request.param == "memory":
        return MemoryBus()
    found: dict[str, KafkaBus] = request.getfixturevalue("kafka_buses")
    return found[request.param]


@pytest.fixture
def topic(bus: Bus) -> Topic:
    """A topic of the test's own."""
    made = Topic(f"test.{uuid.uuid4().hex}", 3, 3_600_000, "any", "test events")
    if isinstance(bus, KafkaBus):
        bus.create(made)
    return made


@pytest.fixture
def consume(bus: Bus, topic: Topic) -> Iterator[Callable[..., Member]]:
    """Starts a member of a group on the topic; all are stopped at the end."""
    members: list[Member] = []
    default = f"group-{uuid.uuid4().hex}"

    def consume(handler: EventHandler, group: str = default) -> Member:
        member = bus.consumer(group, topic, handler)
        member.start()
        assert member.wait_assigned(60)
        members.append(member)
        return member

    yield consume
    for member in members:
        member.stop()
