"""How much of a topic its declared readers have still to read, for work that waits until they have."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from services.kit.bus.brokers import Brokers
from services.kit.bus.topics import Topic
from services.kit.errors import bus_away

Ends = Mapping[TopicPartition, int]
"""The offset behind the last message of each partition, at some moment."""

_LOOK_MS = 500


class Backlog:
    """Asks the broker; thread-safe. It connects when it is first asked."""

    def __init__(self, bootstrap: Brokers | str, client_id: str) -> None:
        self._brokers = Brokers.of(bootstrap)
        self._client_id = client_id
        self._lock = threading.Lock()
        self._clients: tuple[KafkaAdminClient, KafkaConsumer] | None = None

    def ends(self, topic: Topic) -> Ends:
        """Where each partition of a topic ends now.

        Raises:
            UnavailableError: the broker does not answer.
        """
        with self._connected() as (_, consumer):
            found: Ends = consumer.end_offsets([TopicPartition(topic.name, n) for n in range(topic.partitions)])
            return found

    def unread(self, topic: Topic, ends: Ends) -> int:
        """How many messages before these ends one of the topic's readers has still to read, at most.

        Raises:
            UnavailableError: the broker does not answer.
        """
        with self._connected() as (admin, consumer):
            begins = consumer.beginning_offsets(list(ends))
            committed = admin.list_group_offsets(dict.fromkeys(topic.readers))
            most = 0
            for group in topic.readers:
                given = {place: at.offset for place, at in committed[group].items()}
                read = {place: max(begins[place], given.get(place, 0)) for place in ends}
                left = [place for place, end in ends.items() if end > read[place]]
                held = (place for place in left if _holds_any(consumer, place, read[place], ends[place]))
                most = max(most, sum(ends[place] - read[place] for place in held))
            return most

    def close(self) -> None:
        """Closes the connections; a later question opens others."""
        with self._lock:
            self._disconnect()

    @contextmanager
    def _connected(self) -> Iterator[tuple[KafkaAdminClient, KafkaConsumer]]:
        with self._lock:
            try:
                if self._clients is None:
                    options = self._brokers.options() | {"client_id": self._client_id}
                    admin = KafkaAdminClient(**options)
                    # Whether there is a message is all that it is asked: a broker sends one batch whatever the limit.
                    few = {"isolation_level": "read_committed", "max_partition_fetch_bytes": 1}
                    self._clients = (admin, KafkaConsumer(**options, **few))
                yield self._clients
            except KafkaError as error:
                self._disconnect()
                raise bus_away("Kafka did not say what is still to be read", error) from error

    def _disconnect(self) -> None:
        for client in self._clients or ():
            client.close()
        self._clients = None


def _holds_any(consumer: KafkaConsumer, place: TopicPartition, begin: int, end: int) -> bool:
    """Whether a message lies between two offsets. The ends of transactions take offsets, too, and are not messages."""
    consumer.assign([place])
    consumer.seek(place, begin)
    try:
        found = consumer.poll(timeout_ms=_LOOK_MS, max_records=1)
        # A broker that is too slow to answer has not said that there is none.
        return bool(found) or consumer.position(place) < end
    finally:
        consumer.assign([])
