"""A Kafka consumer in its own thread: commits after the work is done, and sends poison messages to the dead letters.

Read-committed, cooperative rebalancing (KIP-429). Each batch is handled, then committed. If a batch fails, its
messages are handled one by one, so one poison message never blocks its partition. A retryable failure
(`services.kit.errors.is_retryable`) is retried with growing pauses and never moves the offset.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import CommitFailedError, KafkaError, KafkaTimeoutError, RebalanceInProgressError
from opentelemetry import context, trace

from services.kit.bus.brokers import Brokers
from services.kit.bus.cloudevents import trace_context
from services.kit.bus.metrics import ConsumerMetrics
from services.kit.bus.port import Delivery, EventHandler, LostMessages
from services.kit.bus.positions import ReadPositions, first_offsets
from services.kit.bus.topics import Topic
from services.kit.errors import DataLossError, InvalidArgumentError, TidemillError, explained, is_retryable
from services.kit.retrying import Backoff, StoppedError, call_with_retries
from services.kit.telemetry import schema

logger = logging.getLogger(__name__)

_HEARTBEAT_S = 3.0
_CLOSE_MS = 2000
# Time for one metadata request, one commit and the goodbye, with a broker that responds.
_LEAVE_S = 4.0
_COMMIT_MS, _COMMIT_TRIES = 2500, 8
# An unknown error may be transient: the message counts as poison only after this many attempts.
_UNEXPECTED_TRIES = 3


class DeadLetterSink(Protocol):
    """Where refused messages go."""

    def dead_letter(self, delivery: Delivery, error: Exception) -> None:
        """Makes the refused message and its reason durable."""
        ...


class DeliveryProcessor:
    """Runs a handler over batches, with retries and dead letters. Independent of Kafka, so it can be tested alone."""

    def __init__(
        self,
        handler: EventHandler,
        dead_letters: DeadLetterSink,
        *,
        stop: threading.Event,
        on_refused: Callable[[Delivery], None] | None = None,
    ) -> None:
        """`stop` is set when the process is stopping; `on_refused` is called with each dead letter."""
        self._handler = handler
        self._on_refused = on_refused
        self._dead_letters = dead_letters
        self._stop = stop

    def process(self, batch: Sequence[Delivery]) -> None:
        """Returns when every delivery is handled or is a dead letter.

        Raises:
            StoppedError: the process stopped first.
        """
        try:
            self._handler.handle(batch)
            return
        except Exception as error:
            if len(batch) > 1:
                logger.info("a batch of %d failed (%s); handling its messages one by one", len(batch), error)
        for delivery in batch:
            # The batch is delivered again as a whole; handling the rest one by one could take longer than a stop may.
            if self._stop.is_set():
                raise StoppedError
            self._process_one(delivery)

    def refuse(self, delivery: Delivery, error: Exception) -> None:
        """Makes a dead letter of a delivery that cannot be passed to a handler.

        Raises:
            StoppedError: the process stopped first.
        """
        self._bury(delivery, error)

    def _process_one(self, delivery: Delivery) -> None:
        unexpected = 0

        def should_retry(error: BaseException) -> bool:
            nonlocal unexpected
            unexpected += not isinstance(error, TidemillError)
            # If the stop did not wait for the handler, what it uses may be closed already: not the message's fault.
            if unexpected and self._stop.is_set():
                return True
            known = explained(error)
            # A full disk or a damaged database is not the message's fault.
            if known is not None and (is_retryable(known) or isinstance(known, DataLossError)):
                return True
            return not isinstance(error, TidemillError) and unexpected < _UNEXPECTED_TRIES

        place = f"{delivery.topic}[{delivery.partition}]@{delivery.offset}"
        try:
            call_with_retries(lambda: self._handler.handle([delivery]), place, self._stop, should_retry=should_retry)
        except StoppedError:
            raise
        except Exception as error:
            self._bury(delivery, error)

    def _bury(self, delivery: Delivery, error: Exception) -> None:
        call_with_retries(
            lambda: self._dead_letters.dead_letter(delivery, error),
            "a dead letter",
            self._stop,
            should_retry=lambda cause: isinstance(cause, TidemillError),
        )
        if self._on_refused is not None:
            self._on_refused(delivery)
        logger.error(
            "refused %s[%d]@%d: %s",
            delivery.topic,
            delivery.partition,
            delivery.offset,
            error,
            exc_info=None if isinstance(error, TidemillError) else error,
        )


class KafkaEventConsumer:
    """A member of a consumer group; call `start` once and `stop` once."""

    def __init__(
        self,
        bootstrap: Brokers | str,
        group: str,
        topics: Sequence[Topic],
        handler: EventHandler,
        dead_letters: DeadLetterSink,
        *,
        on_lost: Callable[[LostMessages], None] | None = None,
        metrics: ConsumerMetrics | None = None,
        max_batch: int = 500,
        heartbeat_patience_s: float = 30.0,
    ) -> None:
        """Does not connect until `start`.

        Args:
            bootstrap: how to reach the brokers.
            group: the consumer group.
            topics: what to consume; those that name the group among their readers must be read completely.
            handler: handles batches; called from the consumer's thread.
            dead_letters: receives messages that cannot be handled.
            on_lost: called with messages that the bus deleted before the group had read them, before any later message
                is handled. May be called again with the same ones after a restart, and is retried if it raises.
            metrics: of this process; not counted when None.
            max_batch: most messages of one call of the handler.
            heartbeat_patience_s: without a heartbeat for this long, the member joins its group again.
        """
        self._on_lost, self._metrics = on_lost, metrics
        self._heartbeat_patience_s = heartbeat_patience_s
        self._bootstrap = Brokers.of(bootstrap)
        self._group = group
        self._topics = [topic.name for topic in topics]
        self._must_read = frozenset(topic.name for topic in topics if group in topic.readers)
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._processor = DeliveryProcessor(handler, dead_letters, stop=self._stop, on_refused=self._note_refused)
        self._max_batch = max_batch
        # The batch that kafka-python last failed to decode, once for each attempt.
        self._unreadable: list[_Unreadable] = []
        self._tracer = trace.get_tracer(__name__)
        # Whether the handler is running: a stop waits for a handler, but not for a broker that hangs.
        self._handling = False
        self._thread = threading.Thread(target=self._run, name=f"consumer-{group}", daemon=True)

    def start(self) -> None:
        """Starts consuming."""
        self._thread.start()

    def wait_assigned(self, timeout_s: float) -> bool:
        """Waits at most `timeout_s` until the group has assigned partitions to this member."""
        return self._ready.wait(timeout_s)

    def stop(self, timeout_s: float = 20.0) -> None:
        """Stops after the current batch is handled and committed; leaves the group.

        A handler gets all of `timeout_s` to finish. A broker that hangs does not, since nothing is lost by not waiting.
        """
        self._stop.set()
        if not self._thread.is_alive():
            return
        end = time.monotonic() + timeout_s
        self._thread.join(min(timeout_s, _LEAVE_S))
        while self._thread.is_alive() and self._handling and time.monotonic() < end:
            self._thread.join(0.2)
        if self._thread.is_alive():
            what = "its batch" if self._handling else "the broker hangs; uncommitted messages"
            logger.warning("consumer %s did not stop in time; %s will be delivered again", self._group, what)

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stop.is_set():
            pause = backoff.next_s()
            try:
                self._consume()
                backoff.reset()
            except StoppedError:
                return
            except (KafkaError, ValueError, OSError) as error:
                logger.warning("consumer %s lost the broker, reconnecting in %.1f s: %s", self._group, pause, error)
            except Exception:
                logger.exception("consumer %s failed, reconnecting in %.1f s", self._group, pause)
            if self._stop.wait(pause):
                return

    def _consume(self) -> None:
        consumer = KafkaConsumer(
            **self._bootstrap.options(),
            group_id=self._group,
            client_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            partition_assignment_strategy=[CooperativeStickyAssignor],
            max_poll_records=self._max_batch,
            # After this long, the partitions of a killed member go to the remaining ones.
            session_timeout_ms=10_000,
            heartbeat_interval_ms=int(_HEARTBEAT_S * 1000),
            max_poll_interval_ms=600_000,
        )
        try:
            consumer.subscribe(self._topics)
            for topic in self._topics:
                # Known before joining: otherwise the first assignment is empty and a second one follows at once.
                consumer.partitions_for_topic(topic)
            positions = ReadPositions(consumer, self._report_lost, self._must_read)
            look = time.monotonic() + self._heartbeat_patience_s
            measure = 0.0
            while not self._stop.is_set():
                try:
                    polled = consumer.poll(timeout_ms=200)
                except Exception as error:
                    unreadable = _unreadable_batch(error)
                    if unreadable is None:
                        raise
                    # The fetch may have been damaged in transit, so it is repeated once over a new connection.
                    self._unreadable = [*(batch for batch in self._unreadable if batch == unreadable), unreadable]
                    if len(self._unreadable) < _UNEXPECTED_TRIES:
                        raise
                    self._skip(consumer, unreadable, error)
                    positions.advance({unreadable.partition: unreadable.next_offset})
                    continue
                positions.follow_assignment()
                if time.monotonic() > measure:
                    self._measure_lag(consumer)
                    measure = time.monotonic() + _HEARTBEAT_S
                if not polled and time.monotonic() > look:
                    self._check_heartbeats(consumer)
                    positions.check_idle()
                    look = time.monotonic() + _HEARTBEAT_S
                if consumer.assignment():
                    self._ready.set()
                batch = [_delivery(record) for records in polled.values() for record in records]
                if not batch:
                    continue
                positions.check_batch(first_offsets((TopicPartition(d.topic, d.partition), d.offset) for d in batch))
                with self._spans(batch):
                    self._handling = True
                    try:
                        self._processor.process(batch)
                    finally:
                        self._handling = False
                done = {TopicPartition(d.topic, d.partition): d.offset + 1 for d in batch}
                self._commit(consumer, done)
                positions.advance(done)
        finally:
            # A broker that hangs must not delay the stop: without a goodbye it drops this member after a while.
            consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)

    def _skip(self, consumer: KafkaConsumer, batch: _Unreadable, error: Exception) -> None:
        """Makes dead letters of messages that kafka-python cannot decode, and continues after them."""
        place, first = batch.partition, max(batch.first_offset, consumer.position(batch.partition))
        message = f"The messages at offsets {first} to {batch.next_offset - 1} cannot be read ({error!r})."
        refusal = InvalidArgumentError(message, reason="UNREADABLE_MESSAGE")
        delivery = Delivery(place.topic, place.partition, first, None, b"", {})
        self._processor.refuse(delivery, refusal)
        consumer.seek(place, batch.next_offset)
        self._commit(consumer, {place: batch.next_offset})

    def _report_lost(self, lost: LostMessages) -> None:
        logger.error(
            "%s[%d]: up to %d messages (offsets %d to %d) were deleted before %s had read them; publish them again "
            "(import again with `resend`), and check that the topic keeps unread messages (retention.ms, "
            "retention.bytes)",
            lost.topic,
            lost.partition,
            lost.count,
            lost.first_offset,
            lost.next_offset - 1,
            self._group,
        )
        if self._on_lost is not None:
            self._on_lost(lost)

    def _note_refused(self, delivery: Delivery) -> None:
        if self._metrics is not None:
            self._metrics.refused(self._group, delivery.topic)

    def _measure_lag(self, consumer: KafkaConsumer) -> None:
        """Sets the lag by topic from what the last fetches said: no request is made for it."""
        if self._metrics is None:
            return
        behind = dict.fromkeys(self._topics, 0)
        for place in consumer.assignment():
            if (end := consumer.highwater(place)) is not None:
                behind[place.topic] += max(0, end - consumer.position(place))
        for topic, count in behind.items():
            self._metrics.lag(self._group, topic, count)

    def _check_heartbeats(self, consumer: KafkaConsumer) -> None:
        """Leaves the group if the broker no longer considers this consumer a member.

        In a rebalance kafka-python 3.0.12 may stop sending heartbeats without noticing: it keeps its partitions,
        receives nothing and spins.
        """
        ago = consumer.metrics()["consumer-coordinator-metrics"]["last-heartbeat-seconds-ago"]
        if consumer.assignment() and ago > self._heartbeat_patience_s:
            raise KafkaError(f"no heartbeat was sent for {self._heartbeat_patience_s:.0f} s")

    def _commit(self, consumer: KafkaConsumer, next_offsets: Mapping[TopicPartition, int]) -> None:
        offsets = {place: OffsetAndMetadata(offset, "", -1) for place, offset in next_offsets.items()}
        try:
            for last in (*[False] * (_COMMIT_TRIES - 1), True):
                try:
                    consumer.commit(offsets, timeout_ms=_COMMIT_MS)
                    return
                except KafkaTimeoutError:
                    # Short attempts, so that a stop need not wait for a broker that hangs.
                    if last or self._stop.is_set():
                        raise
        except (CommitFailedError, RebalanceInProgressError) as error:
            # The group rebalanced without us. The new owner of the partition handles these again, and handlers are
            # idempotent; if this member is still the owner, its next commit covers them.
            logger.warning(
                "group %s rebalanced before a commit; the batch may be delivered again: %s", self._group, error
            )

    @contextmanager
    def _spans(self, batch: Sequence[Delivery]) -> Iterator[None]:
        """One consumer span per trace in the batch, not per message: an import has thousands."""
        first: dict[int, tuple[context.Context, Delivery, int]] = {}
        for delivery in batch:
            parent = trace_context(delivery)
            trace_id = trace.get_current_span(parent).get_span_context().trace_id
            known = first.get(trace_id)
            first[trace_id] = (known[0], known[1], known[2] + 1) if known else (parent, delivery, 1)
        with ExitStack() as stack:
            for parent, delivery, count in first.values():
                stack.enter_context(
                    self._tracer.start_as_current_span(
                        f"process {delivery.topic}",
                        context=parent,
                        kind=trace.SpanKind.CONSUMER,
                        attributes={
                            schema.MESSAGING_SYSTEM: "kafka",
                            schema.MESSAGING_DESTINATION: delivery.topic,
                            schema.MESSAGING_OPERATION: "process",
                            schema.MESSAGING_BATCH_COUNT: count,
                            schema.MESSAGING_CONSUMER_GROUP: self._group,
                            schema.MESSAGING_PARTITION: str(delivery.partition),
                        },
                    )
                )
            yield


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Messages that the client cannot decode, and the offset after them."""

    partition: TopicPartition
    first_offset: int
    next_offset: int


def _unreadable_batch(error: Exception) -> _Unreadable | None:
    """The batch that kafka-python was decoding when it failed; None if it failed elsewhere.

    A header name that is not UTF-8, or a codec that is not installed, makes its `poll` fail every time. The error does
    not say where, so we inspect its frame (`Fetcher.PartitionRecords._unpack_records` of 3.0.12); a test with a real
    broker fails when that frame changes.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_unpack_records":
            place = getattr(frame.f_locals.get("self"), "topic_partition", None)
            batch = frame.f_locals.get("batch")
            if isinstance(place, TopicPartition) and batch is not None:
                return _Unreadable(place, batch.base_offset, batch.next_offset)
    return None


def _delivery(record: object) -> Delivery:
    headers = {name.lower(): value or b"" for name, value in getattr(record, "headers", ()) or ()}
    return Delivery(
        topic=record.topic,  # type: ignore[attr-defined]  # kafka-python has no types
        partition=record.partition,  # type: ignore[attr-defined]
        offset=record.offset,  # type: ignore[attr-defined]
        key=record.key,  # type: ignore[attr-defined]
        value=record.value or b"",  # type: ignore[attr-defined]
        headers=headers,
        log_time_ms=record.timestamp,  # type: ignore[attr-defined]
    )
