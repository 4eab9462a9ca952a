"""Kafka as the bus: idempotent producer, topics from the declared table. Consumers are in `consumer`."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from kafka import KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewTopic
from kafka.errors import (
    IllegalStateError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    TopicAlreadyExistsError,
)
from opentelemetry import trace

from services.kit.bus.brokers import Brokers
from services.kit.bus.cloudevents import EncodedEvent, dead_letter, encode, refusal_headers
from services.kit.bus.port import DeadLetter, Delivery, OutgoingEvent
from services.kit.bus.topics import CODEC, DEAD_LETTERS, MAX_MESSAGE_BYTES, MAX_VALUE_BYTES, TOPICS, Topic
from services.kit.deadline import work_deadline
from services.kit.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError, bus_away
from services.kit.telemetry import schema

logger = logging.getLogger(__name__)

_RECONNECT_PAUSE_S = 1.0
_CLOSE_S = 2.0
_FINISH_S = 3.0
_LOOK_S = 0.5
# A broker that has just started on a slow disk took over 10 s, the client's own limit, for the last of 14 topics.
_READY_MS = 60_000


def ensure_topics(bootstrap: Brokers | str, topics: Sequence[Topic] = TOPICS, *, replication: int = -1) -> None:
    """Creates missing topics with `replication` replicas each (-1: the brokers' default).

    Existing topics get the table's settings, which may be newer. A longer retention is kept, whoever set it. If the
    broker does not allow this client to change settings, the differences are logged.

    Raises:
        UnavailableError: no broker responds, or the topics are not ready in time.
    """
    try:
        admin = KafkaAdminClient(**Brokers.of(bootstrap).options(), client_id="tidemill-topics")
    except (KafkaError, ValueError) as error:
        raise bus_away(f"No Kafka broker answers at {bootstrap}", error) from error
    try:
        present = set(admin.list_topics())
        for topic in topics:
            if topic.name in present:
                continue
            try:
                admin.create_topics([NewTopic(topic.name, topic.partitions, replication, topic_configs=topic.configs)])
            except TopicAlreadyExistsError:
                logger.debug("topic %s was created by another process at the same time", topic.name)
        _reconcile(admin, [topic for topic in topics if topic.name in present])
        # Created does not mean usable: a consumer that joins before its topics have leaders gets nothing at first.
        admin.wait_for_topics([topic.name for topic in topics], timeout_ms=_READY_MS)
    except KafkaError as error:
        raise bus_away("Kafka did not create the topics", error) from error
    finally:
        admin.close()


def answers(bootstrap: Brokers | str, timeout_s: float) -> bool:
    """Whether a broker answers within some seconds; a broker that takes connections and is silent does not."""
    limit = int(timeout_s * 1000)
    limits = {"request_timeout_ms": limit, "bootstrap_timeout_ms": limit, "connections_max_idle_ms": 10 * limit}
    try:
        admin = KafkaAdminClient(**Brokers.of(bootstrap).options(), **limits, client_id="tidemill-probe")
    except (KafkaError, ValueError, FailedPreconditionError):
        return False
    try:
        return bool(admin.describe_cluster()["brokers"])
    except KafkaError:
        return False
    finally:
        admin.close()


def _reconcile(admin: KafkaAdminClient, topics: Sequence[Topic]) -> None:
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in topics]
    if not resources:
        return
    found = admin.describe_configs(resources, config_filter="all")["topic"]
    changes = []
    for topic in topics:
        present = {name: setting["value"] for name, setting in found[topic.name].items()}
        wrong = {name: value for name, value in topic.configs.items() if present.get(name) != value}
        kept_ms = int(present.get("retention.ms") or 0)
        if kept_ms < 0 or kept_ms > topic.retention_ms:
            wrong.pop("retention.ms", None)
        if wrong:
            changes.append(ConfigResource(ConfigResourceType.TOPIC, topic.name, configs=wrong))
            logger.info("topic %s gets the settings %s", topic.name, wrong)
    if not changes:
        return
    for name, result in admin.alter_configs(changes)["topic"].items():
        if result != "OK":
            logger.warning("topic %s keeps settings that differ from the declared ones: %s", name, result)


class _GaveUpError(Exception):
    """A producer gave up on a message and sends no other; those that wait need another producer."""


class KafkaEventPublisher:
    """Publishes the events of one service: acks=all, idempotent, in order for each key.

    Thread-safe; close it at the end.

    A producer whose broker was unavailable for longer than the delivery timeout is replaced: kafka-python 3.0.12 drops
    its producer id when it gives up on a batch, requests no other and never sends again.
    """

    def __init__(
        self, bootstrap: Brokers | str, service: str, *, delivery_timeout_s: float = 30.0, connect: bool = True
    ) -> None:
        """Args:
        bootstrap: the brokers.
        service: the service whose events they are.
        delivery_timeout_s: seconds after which an event that no broker took is an error.
        connect: whether to connect now and to fail if no broker responds; else the first event connects.

        Raises:
            UnavailableError: no broker responds.
        """
        self._bootstrap = Brokers.of(bootstrap)
        self._service = service
        self._timeout_s = delivery_timeout_s
        self._tracer = trace.get_tracer(__name__)
        self._lock = threading.Lock()
        self._closed = False
        self._finishing: float | None = None
        self._spent: KafkaProducer | None = None
        self._hangs = False
        self._next_try = 0.0
        self._producer: KafkaProducer | None = None
        if connect:
            self._connected()

    def _connected(self) -> KafkaProducer:
        spent, self._spent = self._spent, None
        if spent is not None:
            self._abandon(spent)
        with self._lock:
            if self._producer is None:
                # Threads that waited for the lock while an attempt failed need not each retry in turn.
                if self._closed or time.monotonic() < self._next_try:
                    raise self._no_broker()
                try:
                    self._producer = self._connect()
                except (KafkaError, ValueError) as error:
                    self._next_try = time.monotonic() + _RECONNECT_PAUSE_S
                    raise self._no_broker() from error
            return self._producer

    def _no_broker(self) -> UnavailableError:
        return bus_away(f"No Kafka broker answers at {self._bootstrap}")

    def _connect(self) -> KafkaProducer:
        timeout_ms = int(self._timeout_s * 1000)
        return KafkaProducer(
            **self._bootstrap.options(),
            client_id=f"tidemill-{self._service}",
            acks="all",
            enable_idempotence=True,
            compression_type=CODEC,
            linger_ms=2,
            batch_size=256 * 1024,
            max_request_size=MAX_MESSAGE_BYTES,
            # Of one wait for the partitions of a topic, which `_enqueue` repeats: kafka-python's own cannot be ended.
            max_block_ms=int(_LOOK_S * 1000),
            delivery_timeout_ms=timeout_ms,
            request_timeout_ms=min(10_000, timeout_ms - 1000),
            bootstrap_timeout_ms=min(5_000, timeout_ms),
        )

    def _abandon(self, producer: KafkaProducer) -> None:
        with self._lock:
            if self._producer is not producer:
                return
            self._producer = None
        _end(producer, 0)

    def publish(self, topic: Topic, events: Sequence[OutgoingEvent]) -> None:
        """Makes the events durable; see `EventPublisher.publish`."""
        if not events:
            return
        attributes: dict[str, str | int] = {
            schema.MESSAGING_SYSTEM: "kafka",
            schema.MESSAGING_DESTINATION: topic.name,
            schema.MESSAGING_OPERATION: "send",
            schema.MESSAGING_BATCH_COUNT: len(events),
        }
        span = self._tracer.start_as_current_span(
            f"send {topic.name}", kind=trace.SpanKind.PRODUCER, attributes=attributes
        )
        # Background publishing outside any trace starts no trace of its own: its events continue their own traces.
        with span if trace.get_current_span().get_span_context().is_valid else nullcontext():
            encoded = [encode(event, self._service) for event in events]
            for event, message in zip(events, encoded, strict=True):
                size = len(message.value)
                # Checked before anything is sent, so that a refused batch is not sent in part.
                if size > MAX_VALUE_BYTES:
                    raise InvalidArgumentError(
                        f"The event for key {event.key!r} is {size} bytes; the bus takes {MAX_VALUE_BYTES}.",
                        reason="EVENT_TOO_LARGE",
                        metadata={"key": event.key},
                    )
            try:
                self._send(topic, encoded)
            except MessageSizeTooLargeError as error:
                raise InvalidArgumentError(f"An event is too large: {error}", reason="EVENT_TOO_LARGE") from error
            except KafkaError as error:
                raise bus_away(f"Kafka did not take all of {len(events)} events for {topic.name}", error) from error

    def dead_letter(self, delivery: Delivery, error: Exception) -> None:
        """Stores a refused message, as it arrived, with the reason; durable on return."""
        self._send_dead_letters([dead_letter(delivery, error, self._service)])

    def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """Stores dead letters that did not come from a topic.

        Raises:
            UnavailableError: not all of them are durable; retry all of them.
        """
        self._send_dead_letters(
            [
                EncodedEvent(
                    letter.key,
                    letter.value,
                    refusal_headers(letter.reason, letter.message, self._service, letter.origin),
                )
                for letter in letters
            ]
        )

    def send_again(self, topic: Topic, key: bytes | None, value: bytes, headers: Mapping[str, bytes]) -> None:
        """Publishes a message as it once arrived, whoever produced it; durable on return.

        Raises:
            UnavailableError: it may not be durable; send it again.
            InvalidArgumentError: it is larger than a topic takes.
        """
        try:
            self._send(topic, [EncodedEvent(key, value, list(headers.items()))])
        except MessageSizeTooLargeError as error:
            raise InvalidArgumentError(f"The message is too large: {error}", reason="EVENT_TOO_LARGE") from error
        except KafkaError as error:
            raise bus_away(f"Kafka did not take a message for {topic.name}", error) from error

    def _send_dead_letters(self, letters: Sequence[EncodedEvent]) -> None:
        try:
            self._send(DEAD_LETTERS, letters)
        except KafkaError as cause:
            raise bus_away("Kafka did not take a dead letter", cause) from cause

    def _send(self, topic: Topic, messages: Sequence[EncodedEvent]) -> None:
        end = time.monotonic() + self._timeout_s
        left = list(messages)
        while left:
            producer, futures = self._connected(), list[Any]()
            try:
                self._send_by(producer, topic, left, futures, end)
                return
            except _GaveUpError:
                # It may have sent some of them, whose receipts are lost: they are sent twice, with the same ids.
                self._abandon(producer)
                left = [left[at] for at in range(len(left)) if at >= len(futures) or not futures[at].succeeded()]

    def _send_by(
        self, producer: KafkaProducer, topic: Topic, messages: Sequence[EncodedEvent], futures: list[Any], end: float
    ) -> None:
        """Sends messages by one producer; `futures` gets that of each one that it took."""
        try:
            for message in messages:
                futures.append(self._enqueue(producer, topic, message, end))
            for future in futures:
                # Also when the caller has stopped waiting: a producer that gave up on a message must be replaced.
                future.add_errback(self._note_failure, producer)
            for future in futures:
                self._wait_for(future, producer, end)
        except MessageSizeTooLargeError:
            raise
        except IllegalStateError as error:
            if self._gave_up(producer):  # another caller has closed it
                raise _GaveUpError from error
            self._abandon(producer)
            raise
        except KafkaTimeoutError:
            # If only this caller ran out of time, the messages of other callers are still in flight.
            if time.monotonic() >= end:
                self._abandon(producer)
            raise
        except KafkaError:
            self._abandon(producer)
            raise

    def _enqueue(self, producer: KafkaProducer, topic: Topic, message: EncodedEvent, end: float) -> Any:
        """The future of a message, as soon as the producer knows the topic's partitions. Waits as `_wait_for`."""
        began = time.monotonic()
        while True:
            try:
                return producer.send(topic.name, key=message.key, value=message.value, headers=message.headers)
            except KafkaTimeoutError:
                self._left_s(began, end)

    def _wait_for(self, future: Any, producer: KafkaProducer, end: float) -> None:
        """Returns when the message is durable; waits no longer than the call's deadline or the end of the process.

        Raises:
            _GaveUpError: the producer gave up on another message and will not send this one.
        """
        began = time.monotonic()
        while not future.is_done:
            left = self._left_s(began, end)
            if self._gave_up(producer):
                raise _GaveUpError
            with contextlib.suppress(KafkaTimeoutError):
                future.get(timeout=min(left, _LOOK_S))
        future.get(timeout=0)

    def _gave_up(self, producer: KafkaProducer) -> bool:
        return not self._closed and (self._spent is producer or self._producer is not producer)

    def _left_s(self, began: float, end: float) -> float:
        """Seconds that are left of a wait that began then, and lasts until `end` at most.

        Raises:
            KafkaTimeoutError: none are.
        """
        called = work_deadline()
        if called is not None:
            end = min(end, called)
        # While the process ends, each wait is short, and after one failed none follows.
        ending = self._finishing is not None and (began if self._hangs else max(began, self._finishing) + _FINISH_S)
        left = (min(end, ending) if ending else end) - time.monotonic()
        if left <= 0:
            self._hangs = bool(ending)
            raise KafkaTimeoutError("it did not answer in time")
        return left

    def _note_failure(self, producer: KafkaProducer, error: BaseException) -> None:
        """Runs in the producer's own thread, which cannot stop itself."""
        if not isinstance(error, MessageSizeTooLargeError):
            self._spent = producer

    def finish(self) -> None:
        """Announces that the process ends: from now on, nothing waits longer than a few seconds for the broker."""
        self._finishing = time.monotonic()

    def close(self) -> None:
        """Closes the connections; messages that are still waiting to be sent get an error."""
        with self._lock:
            producer, self._producer, self._closed = self._producer, None, True
        if producer is not None:
            # Callers of a broker that hangs have got an error, so none waits for what is still queued.
            _end(producer, 0.0 if self._hangs else _CLOSE_S)


def _end(producer: KafkaProducer, timeout_s: float) -> None:
    try:
        producer.close(timeout=timeout_s)
    except KafkaError as error:
        # `close` waits for queued messages and gives up before it ends its thread. Their futures report the failure.
        logger.info("a producer closed with unsent messages: %s", error)
        producer._sender.force_close()
        # Otherwise it closes itself again when it is garbage-collected, and waits for the same messages.
        producer._closed = True
