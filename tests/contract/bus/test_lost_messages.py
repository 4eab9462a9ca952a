"""Messages that the real Kafka deleted unread are reported; messages that a group has not read are kept."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from services.kit.bus.consumer import KafkaEventConsumer
from services.kit.bus.port import Delivery, LostMessages
from services.kit.bus.retention import delete_read, keep_until_read
from services.kit.bus.topics import Topic
from services.kit.errors import UnavailableError
from tests.contract.bus.conftest import KafkaBus
from tests.waiting import wait_until

pytestmark = pytest.mark.real


class Member:
    """A member that keeps its messages and reported losses; reports fail the next `failures` times."""

    def __init__(self, bus: KafkaBus, topic: Topic, group: str) -> None:
        self.values: list[bytes] = []
        self.lost: list[LostMessages] = []
        self.failures = 0
        self.consumer = KafkaEventConsumer(
            bus.bootstrap, group, [topic], self, bus.publisher, on_lost=self.hear, heartbeat_patience_s=1
        )
        self.consumer.start()

    def handle(self, batch: Sequence[Delivery]) -> None:
        self.values += [delivery.value for delivery in batch]

    def hear(self, lost: LostMessages) -> None:
        if self.failures:
            self.failures -= 1
            raise UnavailableError("the database is unavailable")
        self.lost.append(lost)


Join = Callable[[], Member]


@pytest.fixture
def topic(kafka_bus: KafkaBus) -> Topic:
    name = uuid.uuid4().hex
    made = Topic(f"test.{name}", 1, 3_600_000, "any", "test events", (f"group-{name}",))
    kafka_bus.create(made)
    return made


@pytest.fixture
def join(kafka_bus: KafkaBus, topic: Topic) -> Iterator[Join]:
    """Starts a member of the topic's reader."""
    members: list[Member] = []

    def join() -> Member:
        members.append(Member(kafka_bus, topic, topic.readers[0]))
        assert members[-1].consumer.wait_assigned(60)
        return members[-1]

    yield join
    for member in members:
        member.consumer.stop()


@pytest.fixture
def admin(kafka_bus: KafkaBus) -> Iterator[KafkaAdminClient]:
    made = KafkaAdminClient(bootstrap_servers=kafka_bus.bootstrap)
    yield made
    made.close()


def put(bus: KafkaBus, topic: Topic, first: int, count: int) -> None:
    for number in range(first, first + count):
        bus.put(topic, b"k", str(number).encode(), [])


def committed(admin: KafkaAdminClient, topic: Topic) -> int:
    found = admin.list_group_offsets({topic.readers[0]: None})[topic.readers[0]]
    place = TopicPartition(topic.name, 0)
    return int(found[place].offset) if place in found else -1


def test_what_was_deleted_while_a_reader_was_unavailable_is_reported_once_and_the_rest_is_read(
    kafka_bus: KafkaBus, topic: Topic, join: Join, admin: KafkaAdminClient
) -> None:
    first = join()
    put(kafka_bus, topic, 0, 10)
    wait_until(lambda: committed(admin, topic) == 10)
    first.consumer.stop()
    put(kafka_bus, topic, 10, 500)
    admin.delete_records({TopicPartition(topic.name, 0): 358})
    second = join()
    wait_until(lambda: len(second.values) == 152)
    assert second.lost == [LostMessages(topic.name, 0, 10, 358)]
    assert second.lost[0].count == 348
    assert second.values[0] == b"358"
    second.consumer.stop()
    third = join()
    put(kafka_bus, topic, 510, 1)
    wait_until(lambda: third.values == [b"510"])
    assert (first.lost, third.lost) == ([], [])


def test_what_was_deleted_before_the_first_commit_and_to_the_last_message_is_reported(
    kafka_bus: KafkaBus, topic: Topic, join: Join, admin: KafkaAdminClient
) -> None:
    """Nothing is left to read then, so only the offsets show the loss."""
    first = join()
    wait_until(lambda: committed(admin, topic) == 0)
    first.consumer.stop()
    put(kafka_bus, topic, 0, 20)
    admin.delete_records({TopicPartition(topic.name, 0): 20})
    second = join()
    wait_until(lambda: second.lost == [LostMessages(topic.name, 0, 0, 20)])
    wait_until(lambda: committed(admin, topic) == 20)


def test_a_loss_that_could_not_be_noted_is_published_again_and_nothing_is_read_before(
    kafka_bus: KafkaBus, topic: Topic, join: Join, admin: KafkaAdminClient
) -> None:
    first = join()
    wait_until(lambda: committed(admin, topic) == 0)
    first.consumer.stop()
    put(kafka_bus, topic, 0, 20)
    admin.delete_records({TopicPartition(topic.name, 0): 15})
    second = Member(kafka_bus, topic, topic.readers[0])
    second.failures = 2
    wait_until(lambda: len(second.values) == 5)
    second.consumer.stop()
    assert second.failures == 0
    assert second.lost == [LostMessages(topic.name, 0, 0, 15)]


def test_a_topic_keeps_what_its_reader_has_not_read_however_old_it_is(
    kafka_bus: KafkaBus, topic: Topic, join: Join, admin: KafkaAdminClient
) -> None:
    keep_until_read(admin, [topic])
    resource = ConfigResource(ConfigResourceType.TOPIC, topic.name)
    assert admin.describe_configs([resource])["topic"][topic.name]["retention.ms"]["value"] == "-1"
    first = join()
    put(kafka_bus, topic, 0, 10)
    wait_until(lambda: committed(admin, topic) == 10)
    first.consumer.stop()
    put(kafka_bus, topic, 10, 10)
    reader = KafkaConsumer(bootstrap_servers=kafka_bus.bootstrap)
    place = TopicPartition(topic.name, 0)
    now = int(time.time() * 1000)
    assert delete_read(admin, reader, [topic], now) == 0
    # Two hours later all messages are older than the topic's retention of one hour, and half of them were read.
    assert delete_read(admin, reader, [topic], now + 2 * topic.retention_ms) == 10
    assert reader.beginning_offsets([place]) == {place: 10}
    reader.close()
    second = join()
    wait_until(lambda: len(second.values) == 10)
    assert second.lost == []
