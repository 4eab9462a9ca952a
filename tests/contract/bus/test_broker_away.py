"""The real Kafka goes away for longer than a publication waits, and comes back."""

from __future__ import annotations

import contextvars
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from infra.stack.testing import brokers
from services.kit.bus.kafka import KafkaEventPublisher, answers
from services.kit.bus.librdkafka import LibrdkafkaSender
from services.kit.bus.topics import Topic
from services.kit.deadline import set_call_deadline
from services.kit.errors import UnavailableError
from tests.contract.bus.conftest import KafkaBus
from tests.contract.bus.test_bus import event
from tests.freezing import frozen
from tests.waiting import wait_until

pytestmark = pytest.mark.real


def publisher_of(bus: KafkaBus, timeout_s: float) -> KafkaEventPublisher:
    return KafkaEventPublisher(brokers(bus.bootstrap, bus.client), "test", delivery_timeout_s=timeout_s)


def test_a_publisher_survives_a_broker_that_was_unavailable(each_kafka_bus: KafkaBus) -> None:
    topic = Topic(f"test.{uuid.uuid4().hex}", 2, 3_600_000, "any", "test events")
    each_kafka_bus.create(topic)
    publisher = publisher_of(each_kafka_bus, timeout_s=4)
    publisher.publish(topic, [event("a", "before")])
    with frozen(each_kafka_bus.pid):
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(UnavailableError):
                publisher.publish(topic, [event("a", "meanwhile"), event("b", "meanwhile")])
            assert time.monotonic() - began < 20

    def published() -> bool:
        with suppress(UnavailableError):
            publisher.publish(topic, [event("a", "after"), event("b", "after")])
            return True
        return False

    wait_until(published, "a broker that answers")
    publisher.close()
    # A message whose publication failed may still have reached the broker.
    assert sorted(m.key or b"" for m in each_kafka_bus.messages(topic) if b"after" in m.value) == [b"a", b"b"]


def test_a_publisher_ends_while_its_broker_is_unavailable(each_kafka_bus: KafkaBus) -> None:
    topic = Topic(f"test.{uuid.uuid4().hex}", 1, 3_600_000, "any", "test events")
    each_kafka_bus.create(topic)
    publisher = publisher_of(each_kafka_bus, timeout_s=4)
    publisher.publish(topic, [event("a", "before")])
    with frozen(each_kafka_bus.pid):
        with pytest.raises(UnavailableError):
            publisher.publish(topic, [event("a", "meanwhile")])
        publisher.close()
        with pytest.raises(UnavailableError):
            publisher.publish(topic, [event("a", "closed")])


@pytest.mark.parametrize("by_the_caller", [True, False], ids=["at its caller's deadline", "with its process"])
def test_a_publication_to_a_topic_that_is_new_to_its_process_ends(
    each_kafka_bus: KafkaBus, by_the_caller: bool
) -> None:
    known, new = (Topic(f"test.{uuid.uuid4().hex}", 1, 3_600_000, "any", "test events") for _ in range(2))
    each_kafka_bus.create(known)
    each_kafka_bus.create(new)
    publisher = publisher_of(each_kafka_bus, timeout_s=120)
    publisher.publish(known, [event("a", "before")])
    errors: list[UnavailableError] = []

    def publish() -> None:
        if by_the_caller:
            set_call_deadline(2)
        try:
            publisher.publish(new, [event("a", "meanwhile")])
        except UnavailableError as error:
            errors.append(error)

    with frozen(each_kafka_bus.pid):
        publishing = threading.Thread(target=contextvars.copy_context().run, args=(publish,), daemon=True)
        publishing.start()
        if not by_the_caller:
            publisher.finish()
        publishing.join(30)  # of 120
        assert [error.reason for error in errors] == ["BUS_AWAY"]
        publisher.close()


def test_a_broker_that_is_silent_does_not_answer(kafka_bus: KafkaBus) -> None:
    assert answers(kafka_bus.bootstrap, 10)
    with frozen(kafka_bus.pid):
        assert not answers(kafka_bus.bootstrap, 1)
    assert not answers("127.0.0.1:1", 1)


def test_callers_with_little_time_do_not_keep_a_spent_producer(each_kafka_bus: KafkaBus) -> None:
    topic = Topic(f"test.{uuid.uuid4().hex}", 1, 3_600_000, "any", "test events")
    each_kafka_bus.create(topic)
    publisher = publisher_of(each_kafka_bus, timeout_s=4)

    def publish(what: str) -> bool:
        set_call_deadline(2)
        try:
            publisher.publish(topic, [event("a", what)])
        except UnavailableError:
            return False
        return True

    def hurried(what: str) -> bool:
        return contextvars.copy_context().run(publish, what)

    wait_until(lambda: hurried("before"), "a broker that answers")
    with frozen(each_kafka_bus.pid):
        # Until the producer gives up on the first message, long after the caller got its error.
        end = time.monotonic() + 10
        while time.monotonic() < end:
            assert not hurried("meanwhile")
    wait_until(lambda: hurried("after"), "a producer that sends again")
    publisher.close()


def test_a_publication_outlives_a_producer_that_gave_up_on_an_earlier_one(each_kafka_bus: KafkaBus) -> None:
    topic = Topic(f"test.{uuid.uuid4().hex}", 1, 3_600_000, "any", "test events")
    each_kafka_bus.create(topic)
    publisher = publisher_of(each_kafka_bus, timeout_s=12)

    def publish(what: str, deadline_s: float) -> bool:
        set_call_deadline(deadline_s)
        try:
            publisher.publish(topic, [event("a", what), event("a", f"{what} too")])
        except UnavailableError:
            return False
        return True

    def run(what: str, deadline_s: float) -> bool:
        return contextvars.copy_context().run(publish, what, deadline_s)

    wait_until(lambda: run("before", 10), "a broker that answers")
    with ThreadPoolExecutor(1) as pool:
        with frozen(each_kafka_bus.pid):
            began = time.monotonic()
            assert not run("hurried", 2)
            time.sleep(4)
            patient = pool.submit(run, "patient", 60)
            # The producer gives up on the hurried one when it is 12 s old: the patient one has six left.
            time.sleep(began + 12.5 - time.monotonic())
        assert patient.result(60)
    publisher.close()
    values = [message.value for message in each_kafka_bus.messages(topic)]
    assert any(b"patient" in value for value in values)
    assert any(b"patient too" in value for value in values)


def test_a_publication_outlives_the_end_of_its_producer(kafka_bus: KafkaBus) -> None:
    """librdkafka ends a producer whose id its broker no longer knows, with all that it has still to send."""
    topic = Topic(f"test.{uuid.uuid4().hex}", 1, 3_600_000, "any", "test events")
    kafka_bus.create(topic)
    publisher = publisher_of(kafka_bus, timeout_s=60)
    publisher.publish(topic, [event("a", "before")])
    sender = publisher._sender
    assert isinstance(sender, LibrdkafkaSender)
    ended = sender._producer
    assert ended is not None
    with ThreadPoolExecutor(1) as pool:
        with frozen(kafka_bus.pid):
            waiting = pool.submit(publisher.publish, topic, [event("a", "waits"), event("a", "too")])
            wait_until(lambda: len(ended._producer) > 0, "a message that waits for its receipt")
            ended.close(0)
        waiting.result(60)
    publisher.close()
    values = [message.value for message in kafka_bus.messages(topic)]
    assert any(b"waits" in value for value in values)
    assert any(b"too" in value for value in values)
