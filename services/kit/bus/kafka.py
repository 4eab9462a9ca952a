"""Kafka as the bus: publisher, topics from the declared table. Consumers are in `consumer`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError
from opentelemetry import trace

from services.kit.bus.brokers import Brokers, ProducerClient
from services.kit.bus.cloudevents import EncodedEvent, dead_letter, encode, refusal_headers
from services.kit.bus.port import DeadLetter, Delivery, OutgoingEvent
from services.kit.bus.senders import MessageTooLargeError, NotSentError, Sender
from services.kit.bus.topics import DEAD_LETTERS, MAX_VALUE_BYTES, TOPICS, Topic
from services.kit.errors import FailedPreconditionError, InvalidArgumentError, bus_away
from services.kit.telemetry import schema

logger = logging.getLogger(__name__)

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


class KafkaEventPublisher:
    """Publishes the events of one service: acks=all, idempotent, in order for each key.

    Thread-safe; close it at the end.
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
        brokers = Brokers.of(bootstrap)
        self._service = service
        self._tracer = trace.get_tracer(__name__)
        self._sender = _sender(brokers.client)(brokers, f"tidemill-{service}", delivery_timeout_s, connect)

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
            encoded = encode(events, self._service)
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
                self._sender.send(topic, encoded)
            except MessageTooLargeError as error:
                raise InvalidArgumentError(f"An event is too large: {error}", reason="EVENT_TOO_LARGE") from error
            except NotSentError as error:
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
            self._sender.send(topic, [EncodedEvent(key, value, list(headers.items()))])
        except MessageTooLargeError as error:
            raise InvalidArgumentError(f"The message is too large: {error}", reason="EVENT_TOO_LARGE") from error
        except NotSentError as error:
            raise bus_away(f"Kafka did not take a message for {topic.name}", error) from error

    def _send_dead_letters(self, letters: Sequence[EncodedEvent]) -> None:
        try:
            self._sender.send(DEAD_LETTERS, letters)
        except NotSentError as cause:
            raise bus_away("Kafka did not take a dead letter", cause) from cause

    def finish(self) -> None:
        """Announces that the process ends: from now on, nothing waits longer than a few seconds for the broker."""
        self._sender.finish()

    def close(self) -> None:
        """Closes the connections; messages that are still waiting to be sent get an error."""
        self._sender.close()


def _sender(client: ProducerClient) -> Callable[[Brokers, str, float, bool], Sender]:
    """Only the client that is used is imported."""
    if client is ProducerClient.KAFKA_PYTHON:
        from services.kit.bus.kafka_python import KafkaPythonSender

        return KafkaPythonSender
    from services.kit.bus.librdkafka import LibrdkafkaSender

    return LibrdkafkaSender
