"""Messages sent by kafka-python, in Python alone."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer
from kafka.errors import IllegalStateError, KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from services.kit.bus.brokers import Brokers
from services.kit.bus.cloudevents import EncodedEvent
from services.kit.bus.senders import MessageTooLargeError, NotSentError, Patience
from services.kit.bus.topics import CODEC, MAX_MESSAGE_BYTES, Topic
from services.kit.errors import UnavailableError, bus_away

logger = logging.getLogger(__name__)

_RECONNECT_PAUSE_S = 1.0
_CLOSE_S = 2.0
_LOOK_S = 0.5


class _GaveUpError(Exception):
    """A producer gave up on a message and sends no other; those that wait need another producer."""


class KafkaPythonSender:
    """See `Sender`.

    A producer whose broker was unavailable for longer than the delivery timeout is replaced: kafka-python 3.0.12 drops
    its producer id when it gives up on a batch, requests no other and never sends again.
    """

    def __init__(self, brokers: Brokers, client: str, timeout_s: float, connect: bool) -> None:
        """Args:
        brokers: where they are.
        client: name of this client in the broker's log.
        timeout_s: seconds after which a message that no broker took is an error.
        connect: whether to connect now and to fail if no broker responds; else the first message connects.

        Raises:
            UnavailableError: no broker responds.
        """
        self._brokers, self._client, self._timeout_s = brokers, client, timeout_s
        self._lock = threading.Lock()
        self._closed = False
        self._patience = Patience()
        self._spent: KafkaProducer | None = None
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
        return bus_away(f"No Kafka broker answers at {self._brokers}")

    def _connect(self) -> KafkaProducer:
        timeout_ms = int(self._timeout_s * 1000)
        return KafkaProducer(
            **self._brokers.options(),
            client_id=self._client,
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

    def send(self, topic: Topic, messages: Sequence[EncodedEvent]) -> None:
        """See `Sender.send`."""
        try:
            self._send(topic, messages)
        except MessageSizeTooLargeError as error:
            raise MessageTooLargeError(str(error)) from error
        except KafkaError as error:
            raise NotSentError(str(error)) from error

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
        except (KafkaTimeoutError, NotSentError):
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
                self._patience.left_s(began, end)

    def _wait_for(self, future: Any, producer: KafkaProducer, end: float) -> None:
        """Returns when the message is durable; waits no longer than the call's deadline or the end of the process.

        Raises:
            _GaveUpError: the producer gave up on another message and will not send this one.
        """
        began = time.monotonic()
        while not future.is_done:
            left = self._patience.left_s(began, end)
            if self._gave_up(producer):
                raise _GaveUpError
            with contextlib.suppress(KafkaTimeoutError):
                future.get(timeout=min(left, _LOOK_S))
        future.get(timeout=0)

    def _gave_up(self, producer: KafkaProducer) -> bool:
        return not self._closed and (self._spent is producer or self._producer is not producer)

    def _note_failure(self, producer: KafkaProducer, error: BaseException) -> None:
        """Runs in the producer's own thread, which cannot stop itself."""
        if not isinstance(error, MessageSizeTooLargeError):
            self._spent = producer

    def finish(self) -> None:
        """See `Sender.finish`."""
        self._patience.finish()

    def close(self) -> None:
        """See `Sender.close`."""
        with self._lock:
            producer, self._producer, self._closed = self._producer, None, True
        if producer is not None:
            # Callers of a broker that hangs have got an error, so none waits for what is still queued.
            _end(producer, 0.0 if self._patience.exhausted else _CLOSE_S)


def _end(producer: KafkaProducer, timeout_s: float) -> None:
    try:
        producer.close(timeout=timeout_s)
    except KafkaError as error:
        # `close` waits for queued messages and gives up before it ends its thread. Their futures report the failure.
        logger.info("a producer closed with unsent messages: %s", error)
        producer._sender.force_close()
        # Otherwise it closes itself again when it is garbage-collected, and waits for the same messages.
        producer._closed = True
