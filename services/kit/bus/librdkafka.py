"""Messages sent by librdkafka, the client in C, through confluent-kafka."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from services.kit.bus.brokers import Brokers
from services.kit.bus.cloudevents import EncodedEvent
from services.kit.bus.senders import MessageTooLargeError, NotSentError, Patience
from services.kit.bus.topics import CODEC, MAX_MESSAGE_BYTES, Topic
from services.kit.errors import UnavailableError, bus_away

logger = logging.getLogger(__name__)

_CONNECT_S = 5.0
_CLOSE_S = 2.0
_LOOK_S = 0.5
_FULL_PAUSE_S = 0.01
_REPORT_S = 30.0
# Of messages that wait for a broker, in one process.
_MAX_QUEUED_KB = 64 * 1024
# A producer that has met a fatal error, or was closed, ends what it still has with one of these.
_ENDED = frozenset({KafkaError._FATAL, KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})


class LibrdkafkaSender:
    """See `Sender`.

    librdkafka reconnects, retries and keeps the order by itself. Only after an error that it calls fatal, such as a
    producer id that a broker no longer knows, it sends nothing more and has to be replaced.
    """

    def __init__(self, brokers: Brokers, client: str, timeout_s: float, connect: bool) -> None:
        """Args:
        brokers: where they are.
        client: name of this client in the broker's log.
        timeout_s: seconds after which a message that no broker took is an error.
        connect: whether to fail now if no broker responds.

        Raises:
            UnavailableError: no broker responds.
        """
        self._brokers, self._client, self._timeout_s = brokers, client, timeout_s
        self._lock = threading.Lock()
        self._closed = False
        self._patience = Patience()
        self._producer: _Producer | None = None
        if connect and not self._connected().answers(min(_CONNECT_S, timeout_s)):
            self.close()
            raise self._no_broker()

    def send(self, topic: Topic, messages: Sequence[EncodedEvent]) -> None:
        """See `Sender.send`."""
        end = time.monotonic() + self._timeout_s
        left = messages
        while left:
            producer = self._connected()
            receipts = _Receipts(len(left))
            for at, message in enumerate(left):
                self._enqueue(producer, topic, message, receipts, at, end)
            began = time.monotonic()
            while not receipts.wait(min(self._patience.left_s(began, end), _LOOK_S)):
                pass
            # A replaced producer may have sent some whose receipts are lost: they are sent twice, with the same ids.
            left = [left[at] for at in sorted(receipts.lost)]
            if left:
                self._abandon(producer)

    def _enqueue(
        self, producer: _Producer, topic: Topic, message: EncodedEvent, receipts: _Receipts, at: int, end: float
    ) -> None:
        began = time.monotonic()
        while not producer.offer(topic.name, message, receipts, at):
            time.sleep(min(self._patience.left_s(began, end), _FULL_PAUSE_S))

    def _connected(self) -> _Producer:
        with self._lock:
            if self._closed:
                raise self._no_broker()
            if self._producer is None:
                self._producer = _Producer(self._options())
            return self._producer

    def _no_broker(self) -> UnavailableError:
        return bus_away(f"No Kafka broker answers at {self._brokers}")

    def _options(self) -> dict[str, Any]:
        timeout_ms = int(self._timeout_s * 1000)
        return {
            **self._brokers.librdkafka_options(),
            "client.id": self._client,
            "enable.idempotence": True,
            # Of Java's client and kafka-python: a key stays in its partition, whichever of them sends it.
            "partitioner": "murmur2_random",
            "compression.type": CODEC,
            "linger.ms": 2,
            "batch.size": 256 * 1024,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "message.timeout.ms": timeout_ms,
            "socket.timeout.ms": min(10_000, timeout_ms - 1000),
            "socket.connection.setup.timeout.ms": int(1000 * min(_CONNECT_S, self._timeout_s)),
            "reconnect.backoff.max.ms": 1_000,
            # Of what it would log to standard error; `_Producer` logs.
            "log_level": 0,
            "queue.buffering.max.kbytes": _MAX_QUEUED_KB,
        }

    def _abandon(self, producer: _Producer) -> None:
        with self._lock:
            if self._producer is not producer:
                return
            self._producer = None
        producer.close(0)

    def finish(self) -> None:
        """See `Sender.finish`."""
        self._patience.finish()

    def close(self) -> None:
        """See `Sender.close`."""
        with self._lock:
            producer, self._producer, self._closed = self._producer, None, True
        if producer is not None:
            # Callers of a broker that hangs have got an error, so none waits for what is still queued.
            producer.close(0.0 if self._patience.exhausted else _CLOSE_S)


class _Receipts:
    """What became of the messages of one call."""

    def __init__(self, count: int) -> None:
        self.lost: list[int] = []
        """Places of those that their producer will not send, for it met a fatal error or was closed by another call."""
        self._left = count
        self._error: KafkaError | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()

    def note(self, at: int, error: KafkaError | None) -> None:
        """A message was sent, or will not be."""
        with self._lock:
            if error is not None:
                if error.code() in _ENDED:
                    self.lost.append(at)
                else:
                    self._error = error
            self._left -= 1
            if not self._left:
                self._done.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether all messages have ended by then.

        Raises:
            NotSentError: one could not be sent, and not for the sake of its producer.
            MessageTooLargeError: one is too large.
        """
        if not self._done.wait(timeout_s):
            return False
        if self._error is not None:
            if self._error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise MessageTooLargeError(self._error.str())
            raise NotSentError(self._error.str())
        return True


class _Producer:
    """A producer, and the thread that reads its receipts."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._producer = Producer({**options, "error_cb": self._report})
        self._reported = -_REPORT_S
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._read, name="kafka-receipts", daemon=True)
        self._thread.start()

    def answers(self, timeout_s: float) -> bool:
        """Whether a broker does."""
        try:
            self._producer.list_topics(timeout=timeout_s)
        except KafkaException as error:
            logger.info("no broker answers: %s", error)
            return False
        return True

    def offer(self, topic: str, message: EncodedEvent, receipts: _Receipts, at: int) -> bool:
        """Whether there was room for a message. If so, `receipts` gets how it ends."""

        def end(error: KafkaError | None, _: Message | None = None) -> None:
            receipts.note(at, error)

        with self._lock:
            # No thread would read the receipt of what comes later.
            if self._closed:
                end(KafkaError(KafkaError._PURGE_QUEUE))
                return True
            headers: list[tuple[str, str | bytes | None]] = list(message.headers)
            try:
                self._producer.produce(topic, message.value, message.key, headers=headers, on_delivery=end)
            except BufferError:
                return False
            except KafkaException as error:
                end(error.args[0])
            return True

    def close(self, timeout_s: float) -> None:
        """Waits for queued messages, then ends them with an error."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if timeout_s:
            self._producer.flush(timeout_s)
        self._producer.purge()
        self._thread.join(_CLOSE_S)

    def _report(self, error: KafkaError) -> None:
        """For the log, which need not show each of many attempts to connect. Callers get their own errors."""
        now = time.monotonic()
        if now - self._reported >= _REPORT_S:
            self._reported = now
            logger.warning("Kafka does not answer: %s", error.str())

    def _read(self) -> None:
        while not self._closed:
            self._producer.poll(_LOOK_S)
        # Receipts of what `close` waits for, or has purged.
        self._producer.flush(2 * _CLOSE_S)
