"""What every bus guarantees (docs/adr/0001): durable when published, at least once, in order for each key."""

from __future__ import annotations

import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from tidemill.cleaning.v1.cleaning_events_pb2 import RecordCleaned

from services.kit.bus.cloudevents import decode, trace_context
from services.kit.bus.port import Delivery, OutgoingEvent
from services.kit.bus.topics import DEAD_LETTERS, Topic
from services.kit.errors import InvalidArgumentError, UnavailableError
from tests.contract.bus.conftest import Bus, KafkaBus
from tests.waiting import wait_until

Consume = Callable[..., Any]


def event(key: str, text: str) -> OutgoingEvent:
    return OutgoingEvent(key, RecordCleaned(record_id=key, text=text))


class Handler:
    """Records the texts that it handled; `fail` may raise for a text."""

    def __init__(self, fail: Callable[[str], None] = lambda text: None) -> None:
        self._fail = fail
        self._lock = threading.Lock()
        self.texts: dict[str, list[str]] = defaultdict(list)
        self.deliveries: list[Delivery] = []

    def handle(self, batch: Sequence[Delivery]) -> None:
        events = [decode(delivery, RecordCleaned) for delivery in batch]
        for item in events:
            self._fail(item.text)
        with self._lock:
            self.deliveries += batch
            for item in events:
                self.texts[item.record_id].append(item.text)

    @property
    def count(self) -> int:
        return sum(len(texts) for texts in self.texts.values())


def test_what_is_published_arrives_as_a_cloudevent_in_order_for_each_key(
    bus: Bus, topic: Topic, consume: Consume
) -> None:
    keys, begun = [f"k{number}" for number in range(7)], int(time.time() * 1000)
    for turn in range(20):
        bus.publish(topic, [event(key, str(turn)) for key in keys])
    handler = Handler()
    consume(handler)
    wait_until(lambda: handler.count >= 140)
    assert handler.texts == {key: [str(turn) for turn in range(20)] for key in keys}
    delivery = handler.deliveries[0]
    assert delivery.event_type == "tidemill.cleaning.v1.RecordCleaned"
    assert delivery.headers["ce_source"] == b"/tidemill/test"
    assert delivery.event_id
    assert delivery.content_type == "application/protobuf"
    assert delivery.headers["ce_specversion"] == b"1.0"
    assert delivery.headers["ce_subject"] == delivery.key
    assert delivery.log_time_ms is not None
    assert begun <= delivery.log_time_ms <= time.time() * 1000
    for key in keys:
        assert len({d.partition for d in handler.deliveries if d.key == key.encode()}) == 1


def test_an_empty_publication_does_nothing(bus: Bus, topic: Topic) -> None:
    bus.publish(topic, [])
    assert not bus.messages(topic)


def test_too_large_an_event_is_refused_before_anything_of_its_batch_is_sent(bus: Bus, topic: Topic) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        bus.publish(topic, [event("small", "x"), event("large", "x" * 5_000_000)])
    assert caught.value.reason == "EVENT_TOO_LARGE"
    assert not bus.messages(topic)


def test_poison_goes_to_the_dead_letters_as_it_came_and_stalls_no_one(bus: Bus, topic: Topic, consume: Consume) -> None:
    mark = topic.name.encode()
    bus.publish(topic, [event("a", "1")])
    bus.put(topic, b"a", mark, [("ce_type", b"foreign"), ("X-Own", b"kept")])
    bus.put(topic, None, mark + b"2", [])
    bus.publish(topic, [event("a", "2"), event("b", "3")])

    def refuse(text: str) -> None:
        if text == "3":
            raise InvalidArgumentError("Three is refused.", reason="THREE")

    handler = Handler(refuse)
    consume(handler)
    wait_until(lambda: handler.count >= 2)
    wait_until(lambda: len([d for d in bus.messages(DEAD_LETTERS) if d.headers["dlq_topic"] == mark]) >= 3)
    letters = {d.headers["dlq_reason"]: d for d in bus.messages(DEAD_LETTERS) if d.headers["dlq_topic"] == mark}
    assert handler.texts == {"a": ["1", "2"]}
    foreign = next(d for d in bus.messages(DEAD_LETTERS) if d.value == mark)
    assert foreign.key == b"a"
    assert foreign.headers["x-own"] == b"kept"
    assert foreign.headers["dlq_reason"] == b"UNEXPECTED_EVENT_TYPE"
    assert int(foreign.headers["dlq_offset"]) >= 0
    assert letters[b"THREE"].headers["dlq_message"] == b"Three is refused."
    assert decode(letters[b"THREE"], RecordCleaned).text == "3"


def test_poison_larger_than_a_dead_letter_may_be_is_cut_and_stalls_no_one(
    bus: Bus, topic: Topic, consume: Consume
) -> None:
    # It compresses well, so the broker accepts it.
    large = topic.name.encode() + b"x" * 6_000_000
    bus.put(topic, b"a", large, [("ce_type", b"foreign")])
    bus.publish(topic, [event("a", "2")])
    handler = Handler()
    consume(handler)
    wait_until(lambda: handler.count >= 1)
    (letter,) = [d for d in bus.messages(DEAD_LETTERS) if d.headers["dlq_topic"] == topic.name.encode()]
    assert large.startswith(letter.value)
    assert len(letter.value) > 3_000_000
    assert letter.headers["dlq_reason"] == b"UNEXPECTED_EVENT_TYPE"
    assert int(letter.headers["dlq_original_bytes"]) >= len(large)


def test_what_a_retry_may_fix_is_tried_until_it_works_in_order(bus: Bus, topic: Topic, consume: Consume) -> None:
    bus.publish(topic, [event("a", str(number)) for number in range(5)])
    failures = 0

    def away(text: str) -> None:
        nonlocal failures
        if text == "2" and failures < 4:
            failures += 1
            raise UnavailableError("away")

    handler = Handler(away)
    consume(handler)
    wait_until(lambda: handler.count >= 5)
    assert failures == 4
    # A batch that failed halfway is repeated, so an event may be handled twice, but never after a later event.
    assert list(dict.fromkeys(handler.texts["a"])) == ["0", "1", "2", "3", "4"]
    assert not [d for d in bus.messages(DEAD_LETTERS) if d.headers["dlq_topic"] == topic.name.encode()]


def test_a_defect_of_a_handler_is_tried_again_before_it_counts_as_poison(
    bus: Bus, topic: Topic, consume: Consume
) -> None:
    tries = 0

    def defect(text: str) -> None:
        nonlocal tries
        if text == "bad":
            tries += 1
            raise RuntimeError("a defect")

    handler = Handler(defect)
    bus.publish(topic, [event("a", "bad"), event("a", "good")])
    consume(handler)
    wait_until(lambda: handler.texts["a"] == ["good"])
    letters = [d for d in bus.messages(DEAD_LETTERS) if d.headers["dlq_topic"] == topic.name.encode()]
    assert [d.headers["dlq_reason"] for d in letters] == [b"UNEXPECTED"]
    assert tries > 1


def test_what_a_consumer_did_not_finish_comes_to_the_next_one(bus: Bus, topic: Topic, consume: Consume) -> None:
    bus.publish(topic, [event("a", str(number)) for number in range(3)])
    seen = threading.Event()

    def never(text: str) -> None:
        seen.set()
        raise UnavailableError("away")

    first = consume(Handler(never))
    assert seen.wait(60)
    first.stop()
    second = Handler()
    member = consume(second)
    wait_until(lambda: second.count >= 3)
    assert second.texts == {"a": ["0", "1", "2"]}
    # Handled messages are committed, so the third member only gets new ones.
    member.stop()
    bus.publish(topic, [event("a", "new")])
    third = Handler()
    consume(third)
    wait_until(lambda: third.count >= 1)
    assert third.texts == {"a": ["new"]}


def test_two_members_share_the_work_and_lose_nothing_when_one_leaves(bus: Bus, topic: Topic, consume: Consume) -> None:
    one, two = Handler(), Handler()
    first = consume(one)
    consume(two)
    wanted = set()
    for turn in range(10):
        batch = [event(f"k{number}", f"{turn}-{number}") for number in range(30)]
        wanted |= {(item.key, f"{turn}-{number}") for number, item in enumerate(batch)}
        bus.publish(topic, batch)
        if turn == 5:
            first.stop()

    def got() -> set[tuple[str, str]]:
        return {(key, text) for handler in (one, two) for key, texts in handler.texts.items() for text in texts}

    wait_until(lambda: got() == wanted)


def test_groups_do_not_know_of_each_other(bus: Bus, topic: Topic, consume: Consume) -> None:
    bus.publish(topic, [event("a", "1")])
    one, two = Handler(), Handler()
    consume(one)
    consume(two, group=f"other-{topic.name}")
    wait_until(lambda: one.count == 1 and two.count == 1)


def test_an_event_continues_the_trace_of_its_publisher_or_its_own(bus: Bus, topic: Topic, consume: Consume) -> None:
    tracer = TracerProvider().get_tracer("test")
    own = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}
    with tracer.start_as_current_span("request") as span:
        trace_id = span.get_span_context().trace_id
        bus.publish(topic, [event("a", "1"), OutgoingEvent("b", RecordCleaned(record_id="b", text="2"), trace=own)])
    bus.publish(topic, [event("c", "3")])
    handler = Handler()
    consume(handler)
    wait_until(lambda: handler.count >= 3)
    traces = {
        delivery.key: trace.get_current_span(trace_context(delivery)).get_span_context().trace_id
        for delivery in handler.deliveries
    }
    assert traces == {b"a": trace_id, b"b": int("a" * 32, 16), b"c": 0}


@pytest.mark.real
def test_a_key_is_in_the_same_partition_whichever_library_sends_it(kafka_buses: dict[str, KafkaBus]) -> None:
    topic = Topic(f"test.{uuid.uuid4().hex}", 7, 3_600_000, "any", "test events")
    places = []
    for bus in kafka_buses.values():
        bus.create(topic)
        bus.publish(topic, [event(f"键{number}", bus.client) for number in range(50)])
    for bus in kafka_buses.values():
        mine = [message for message in bus.messages(topic) if bus.client.encode() in message.value]
        places.append({message.key: message.partition for message in mine})
    assert len(places) == 2
    assert len(places[0]) == 50
    assert places[0] == places[1]
