"""A consumer of topics in a thread of its own: manual commits after the work, dead letters for poison.

Read-committed, cooperative rebalancing (KIP-429). The order of things for a batch: handle, then commit. A batch
that fails is done one by one, so that one poison message never stalls its partition; a retryable failure
(`services.kit.errors.is_retryable`) waits with growing pauses and never moves the offset.
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
from services.kit.bus.port import Delivery, EventHandler, LostMessages
from services.kit.bus.positions import ReadPositions, first_offsets
from services.kit.bus.topics import Topic
from services.kit.errors import DataLossError, InvalidArgumentError, TidemillError, explained, is_retryable
from services.kit.telemetry import schema

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_HEARTBEAT_S = 3.0
_CLOSE_MS = 2000
# For one look at the topics, one commit and the goodbye, of a broker that answers.
_LEAVE_S = 5.0
_COMMIT_MS, _COMMIT_TRIES = 2500, 8
# An error that is none of ours may be a passing one; it gets so many tries before it counts as poison.
_UNEXPECTED_TRIES = 3


class DeadLetterSink(Protocol):
    """Where refused messages go."""

    def dead_letter(self, delivery: Delivery, error: Exception) -> None:
        """Makes the refused message and its reason durable."""
        ...


class _StopError(Exception):
    """The consumer was told to stop while it waited; nothing of the batch is committed."""


class DeliveryProcessor:
    """Runs a handler over batches with retries and dead letters; knows no Kafka, so it is tested alone."""

    def __init__(self, handler: EventHandler, dead_letters: DeadLetterSink, *, wait: Callable[[float], bool]) -> None:
        """`wait(seconds)` pauses and returns True when the process is to stop."""
        self._handler = handler
        self._dead_letters = dead_letters
        self._wait = wait

    def process(self, batch: Sequence[Delivery]) -> None:
        """Returns when every delivery is done or is a dead letter.

        Raises:
            _StopError: it was told to stop before.
        """
        try:
            self._handler.handle(batch)
            return
        except Exception as error:
            if len(batch) > 1:
                logger.info("a batch of %d failed (%s); its messages are tried one by one", len(batch), error)
        for delivery in batch:
            # The batch comes again whole; one by one the rest of it may take longer than a stop may.
            if self._wait(0):
                raise _StopError
            self._process_one(delivery)

    def refuse(self, delivery: Delivery, error: Exception) -> None:
        """Makes a dead letter of a delivery that no handler can be given.

        Raises:
            _StopError: it was told to stop before.
        """
        self._bury(delivery, error)

    def _process_one(self, delivery: Delivery) -> None:
        pause, unexpected = _FIRST_PAUSE_S, 0
        while True:
            try:
                self._handler.handle([delivery])
                return
            except Exception as error:
                unexpected += not isinstance(error, TidemillError)
                # What a handler uses may be closed already where the stop did not wait for it: that is no poison.
                if unexpected and self._wait(0):
                    raise _StopError from error
                known = explained(error)
                # A full disk or a damaged database is the service's trouble, not the message's.
                waits = known is not None and (is_retryable(known) or isinstance(known, DataLossError))
                if not waits and (isinstance(error, TidemillError) or unexpected >= _UNEXPECTED_TRIES):
                    self._bury(delivery, error)
                    return
                logger.warning(
                    "%s[%d]@%d waits %.1f s: %s", delivery.topic, delivery.partition, delivery.offset, pause, error
                )
            if self._wait(pause):
                raise _StopError
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _bury(self, delivery: Delivery, error: Exception) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                self._dead_letters.dead_letter(delivery, error)
            except TidemillError as cause:
                logger.warning("the dead letters are away, waiting %.1f s: %s", pause, cause)
                if self._wait(pause):
                    raise _StopError from cause
                pause = min(pause * 2, _LONGEST_PAUSE_S)
                continue
            logger.error(
                "refused %s[%d]@%d: %s",
                delivery.topic,
                delivery.partition,
                delivery.offset,
                error,
                exc_info=None if isinstance(error, TidemillError) else error,
            )
            return


class KafkaEventConsumer:
    """A member of a consumer group; `start` it once, `stop` it once."""

    def __init__(
        self,
        bootstrap: Brokers | str,
        group: str,
        topics: Sequence[Topic],
        handler: EventHandler,
        dead_letters: DeadLetterSink,
        *,
        on_lost: Callable[[LostMessages], None] | None = None,
        max_batch: int = 500,
        heartbeat_patience_s: float = 30.0,
    ) -> None:
        """Connects when it is started.

        `on_lost` hears of messages that the bus deleted before the group had read them, before anything behind them
        is handled; it may hear of the same ones again after a restart, and is asked again where it raises.
        """
        self._on_lost = on_lost
        self._heartbeat_patience_s = heartbeat_patience_s
        self._bootstrap = Brokers.of(bootstrap)
        self._group = group
        self._topics = [topic.name for topic in topics]
        self._must_read = frozenset(topic.name for topic in topics if group in topic.readers)
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._processor = DeliveryProcessor(handler, dead_letters, wait=self._stop.wait)
        self._max_batch = max_batch
        self._unreadable: list[_Unreadable] = []
        self._tracer = trace.get_tracer(__name__)
        self._handling = False
        self._thread = threading.Thread(target=self._run, name=f"consumer-{group}", daemon=True)

    def start(self) -> None:
        """Starts consuming."""
        self._thread.start()

    def wait_assigned(self, timeout_s: float) -> bool:
        """Waits until the group has given this member its partitions, at most so many seconds."""
        return self._ready.wait(timeout_s)

    def stop(self, timeout_s: float = 20.0) -> None:
        """Ends after the batch in hand is done and committed; leaves the group.

        Work in hand is given all of `timeout_s`. A broker that hangs is not: what its consumer waits for is no loss.
        """
        self._stop.set()
        if not self._thread.is_alive():
            return
        end = time.monotonic() + timeout_s
        self._thread.join(min(timeout_s, _LEAVE_S))
        while self._thread.is_alive() and self._handling and time.monotonic() < end:
            self._thread.join(0.2)
        if self._thread.is_alive():
            what = "its batch" if self._handling else "the broker hangs; what is not committed"
            logger.warning("consumer %s did not end in time; %s will come again", self._group, what)

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                self._consume()
                pause = _FIRST_PAUSE_S
            except _StopError:
                return
            except (KafkaError, ValueError, OSError) as error:
                logger.warning("consumer %s lost the broker, again in %.1f s: %s", self._group, pause, error)
            except Exception:
                logger.exception("consumer %s failed, again in %.1f s", self._group, pause)
            if self._stop.wait(pause):
                return
            pause = min(pause * 2, _LONGEST_PAUSE_S)

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
            # A killed member's partitions go to the others after this long.
            session_timeout_ms=10_000,
            heartbeat_interval_ms=int(_HEARTBEAT_S * 1000),
            max_poll_interval_ms=600_000,
        )
        try:
            consumer.subscribe(self._topics)
            for topic in self._topics:
                # Known before it joins: else the first assignment is empty and a second one follows on its heels.
                consumer.partitions_for_topic(topic)
            positions = ReadPositions(consumer, self._report_lost, self._must_read)
            look = time.monotonic() + self._heartbeat_patience_s
            while not self._stop.is_set():
                try:
                    polled = consumer.poll(timeout_ms=200)
                except Exception as error:
                    unreadable = _unreadable_batch(error)
                    if unreadable is None:
                        raise
                    # It may have been damaged on its way: fetched anew by a new connection it is given another chance.
                    self._unreadable = [*(batch for batch in self._unreadable if batch == unreadable), unreadable]
                    if len(self._unreadable) < _UNEXPECTED_TRIES:
                        raise
                    self._skip(consumer, unreadable, error)
                    positions.advance({unreadable.partition: unreadable.next_offset})
                    continue
                positions.follow_assignment()
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
            # A broker that hangs must not hold up the stop: without a goodbye it misses this member after a while.
            consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)

    def _skip(self, consumer: KafkaConsumer, batch: _Unreadable, error: Exception) -> None:
        """Makes a dead letter of what kafka-python cannot read, and goes on behind it."""
        place, first = batch.partition, max(batch.first_offset, consumer.position(batch.partition))
        message = f"The messages at offsets {first} to {batch.next_offset - 1} cannot be read ({error!r})."
        refusal = InvalidArgumentError(message, reason="UNREADABLE_MESSAGE")
        delivery = Delivery(place.topic, place.partition, first, None, b"", {}, 0)
        self._processor.refuse(delivery, refusal)
        consumer.seek(place, batch.next_offset)
        self._commit(consumer, {place: batch.next_offset})

    def _report_lost(self, lost: LostMessages) -> None:
        logger.error(
            "%s[%d]: up to %d messages (offsets %d to %d) were deleted before %s had read them; publish them again "
            "(import again with `resend`), and see that the topic keeps what is not read (retention.ms, "
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

    def _check_heartbeats(self, consumer: KafkaConsumer) -> None:
        """Ends a membership that the broker has forgotten.

        kafka-python 3.0.12 may stop its heartbeats in a rebalance and not notice: it holds its partitions, gets
        nothing and spins.
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
                    # In short tries, so that a stop need not wait for a broker that hangs.
                    if last or self._stop.is_set():
                        raise
        except (CommitFailedError, RebalanceInProgressError) as error:
            # The group moved on without us. Whoever has the partition now does these again, and handlers are
            # idempotent; where it is still this member, its next commit covers them.
            logger.warning("group %s moved on before a commit; the batch may come again: %s", self._group, error)

    @contextmanager
    def _spans(self, batch: Sequence[Delivery]) -> Iterator[None]:
        """One consumer span for each trace in the batch, not for each message: imports are thousands."""
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
    """Messages that the client cannot decode, and where those behind them begin."""

    partition: TopicPartition
    first_offset: int
    next_offset: int


def _unreadable_batch(error: Exception) -> _Unreadable | None:
    """Which batch kafka-python was decoding when it failed; None where that is not what failed.

    A header whose name is no UTF-8, or a codec that is not installed, ends its `poll`, each time anew and for ever. It
    does not say where, so its frame is asked (`Fetcher.PartitionRecords._unpack_records` of 3.0.12); a test on a
    real broker notices when that frame looks otherwise.
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
        timestamp_ms=record.timestamp,  # type: ignore[attr-defined]
    )
