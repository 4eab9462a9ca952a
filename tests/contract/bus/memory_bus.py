"""A bus in memory for tests: topics with partitions, groups with committed offsets, dead letters.

It runs the kit's own encoding and `DeliveryProcessor`; only the broker is replaced. It passes the suite beside it.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Sequence

from services.kit.bus.cloudevents import dead_letter, encode
from services.kit.bus.consumer import DeliveryProcessor
from services.kit.bus.port import Delivery, EventHandler, OutgoingEvent
from services.kit.bus.topics import DEAD_LETTERS, MAX_MESSAGE_BYTES, MAX_VALUE_BYTES, Topic
from services.kit.errors import InvalidArgumentError, UnavailableError
from services.kit.retrying import StoppedError


class MemoryBus:
    """The broker and a publisher of one service."""

    def __init__(self, service: str = "test") -> None:
        self._service = service
        self._lock = threading.RLock()
        self._logs: dict[tuple[str, int], list[Delivery]] = defaultdict(list)
        self._committed: dict[tuple[str, str, int], int] = {}
        self._members: dict[str, list[MemoryConsumer]] = defaultdict(list)

    def publish(self, topic: Topic, events: Sequence[OutgoingEvent]) -> None:
        """See `EventPublisher`."""
        encoded = encode(events, self._service)
        for event, message in zip(events, encoded, strict=True):
            if len(message.value) > MAX_VALUE_BYTES:
                raise InvalidArgumentError(f"The event for key {event.key!r} is too large.", reason="EVENT_TOO_LARGE")
        for message in encoded:
            self.put(topic, message.key, message.value, message.headers)

    def put(self, topic: Topic, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]]) -> None:
        """Appends a message as any producer may."""
        partition = zlib.crc32(key or value) % topic.partitions
        with self._lock:
            log = self._logs[topic.name, partition]
            named = {name.lower(): item for name, item in headers}
            log.append(Delivery(topic.name, partition, len(log), key, value, named, int(time.time() * 1000)))

    def dead_letter(self, delivery: Delivery, error: Exception) -> None:
        """See `DeadLetterSink`."""
        letter = dead_letter(delivery, error, self._service)
        size = len(letter.key or b"") + len(letter.value) + sum(len(n) + len(v) for n, v in letter.headers)
        if size > MAX_MESSAGE_BYTES:
            raise UnavailableError("The broker takes no message of this size.")
        self.put(DEAD_LETTERS, letter.key, letter.value, letter.headers)

    def messages(self, topic: Topic) -> list[Delivery]:
        """Everything in a topic."""
        with self._lock:
            return [item for number in range(topic.partitions) for item in self._logs[topic.name, number]]

    def consumer(self, group: str, topic: Topic, handler: EventHandler) -> MemoryConsumer:
        """A member of a group, to be started."""
        return MemoryConsumer(self, group, topic, handler)

    def join(self, member: MemoryConsumer) -> None:
        """Adds a member; partitions are reassigned when a member next takes messages."""
        with self._lock:
            self._members[member.group].append(member)

    def leave(self, member: MemoryConsumer) -> None:
        """Removes a member."""
        with self._lock:
            self._members[member.group].remove(member)

    def take(self, member: MemoryConsumer) -> list[Delivery]:
        """The new messages for a member."""
        with self._lock:
            members = self._members[member.group]
            own = range(members.index(member), member.topic.partitions, len(members))
            batch: list[Delivery] = []
            for number in own:
                begin = self._committed.get((member.group, member.topic.name, number), 0)
                batch += self._logs[member.topic.name, number][begin:]
            return batch

    def commit(self, group: str, batch: Sequence[Delivery]) -> None:
        """Moves the group's offsets past a batch."""
        with self._lock:
            for item in batch:
                key = (group, item.topic, item.partition)
                self._committed[key] = max(self._committed.get(key, 0), item.offset + 1)


class MemoryConsumer:
    """Like `KafkaEventConsumer`, on a `MemoryBus`."""

    def __init__(self, bus: MemoryBus, group: str, topic: Topic, handler: EventHandler) -> None:
        self.group, self.topic = group, topic
        self._bus = bus
        self._stop = threading.Event()
        self._processor = DeliveryProcessor(handler, bus, stop=self._stop)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Starts consuming."""
        self._bus.join(self)
        self._thread.start()

    def wait_assigned(self, timeout_s: float) -> bool:
        """Returns at once: the partitions are assigned immediately."""
        return True

    def stop(self, timeout_s: float = 20.0) -> None:
        """Stops after the current batch."""
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                batch = self._bus.take(self)
                if not batch:
                    self._stop.wait(0.01)
                    continue
                self._processor.process(batch)
                self._bus.commit(self.group, batch)
        except StoppedError:
            pass
        finally:
            self._bus.leave(self)
