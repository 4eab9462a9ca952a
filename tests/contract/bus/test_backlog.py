"""What is still to be read of a topic, as the real Kafka says it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest
from kafka import KafkaProducer

from services.kit.bus.backlog import Backlog
from services.kit.bus.consumer import KafkaEventConsumer
from services.kit.bus.port import Delivery
from services.kit.bus.topics import Topic
from services.kit.errors import UnavailableError
from tests.contract.bus.conftest import KafkaBus
from tests.contract.bus.test_bus import event
from tests.waiting import wait_until

pytestmark = pytest.mark.real


@pytest.fixture
def read_topic(kafka_bus: KafkaBus) -> Topic:
    """A topic with one declared reader."""
    name = uuid.uuid4().hex
    made = Topic(f"test.{name}", 3, 3_600_000, "any", "test events", (f"reader-{name}",))
    kafka_bus.create(made)
    return made


@pytest.fixture
def backlog(kafka_bus: KafkaBus) -> Iterator[Backlog]:
    made = Backlog(kafka_bus.bootstrap, "test-backlog")
    yield made
    made.close()


class Seen:
    """A handler that counts."""

    def __init__(self) -> None:
        self.count = 0

    def handle(self, batch: Sequence[Delivery]) -> None:
        self.count += len(batch)


def read(kafka_bus: KafkaBus, topic: Topic, count: int) -> None:
    """Lets the reader of the topic read and commit, until it has seen this many messages."""
    seen = Seen()
    member = KafkaEventConsumer(kafka_bus.bootstrap, topic.readers[0], [topic], seen, dead_letters=kafka_bus.publisher)
    member.start()
    wait_until(lambda: seen.count >= count, "the reader")
    member.stop()


def answers(backlog: Backlog, topic: Topic) -> bool:
    with suppress(UnavailableError):
        backlog.unread(topic, backlog.ends(topic))
        return True
    return False


def test_it_counts_what_a_reader_has_not_committed(kafka_bus: KafkaBus, read_topic: Topic, backlog: Backlog) -> None:
    wait_until(lambda: answers(backlog, read_topic), "a broker that coordinates groups")
    assert backlog.unread(read_topic, backlog.ends(read_topic)) == 0
    kafka_bus.publish(read_topic, [event(f"key-{number}", "before") for number in range(20)])
    ends = backlog.ends(read_topic)
    assert (sum(ends.values()), backlog.unread(read_topic, ends)) == (20, 20)
    kafka_bus.publish(read_topic, [event("key-0", "later")])
    assert backlog.unread(read_topic, ends) == 20
    read(kafka_bus, read_topic, 21)
    assert backlog.unread(read_topic, ends) == 0
    kafka_bus.publish(read_topic, [event("key-0", "last")])
    assert backlog.unread(read_topic, ends) == 0
    assert backlog.unread(read_topic, backlog.ends(read_topic)) == 1


def test_the_end_of_a_transaction_is_not_a_message_to_wait_for(
    kafka_bus: KafkaBus, read_topic: Topic, backlog: Backlog
) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka_bus.bootstrap, transactional_id=f"test-{uuid.uuid4().hex}")
    producer.init_transactions()
    producer.begin_transaction()
    for number in range(6):
        producer.send(read_topic.name, value=b"kept", partition=number % 3)
    producer.commit_transaction()
    producer.begin_transaction()
    producer.send(read_topic.name, value=b"aborted", partition=0)
    producer.flush()
    producer.abort_transaction()
    producer.close()
    ends = backlog.ends(read_topic)
    assert sum(ends.values()) > 7
    assert backlog.unread(read_topic, ends) > 0
    read(kafka_bus, read_topic, 6)
    assert backlog.unread(read_topic, ends) == 0


def test_a_broker_that_is_away_is_an_error_and_not_an_empty_backlog(read_topic: Topic) -> None:
    away = Backlog("127.0.0.1:1", "test-backlog")
    with pytest.raises(UnavailableError) as refused:
        away.ends(read_topic)
    assert refused.value.reason == "BUS_AWAY"
