"""Keeps messages until all declared readers have read them; by age alone Kafka deletes them while a reader is down.

A running reader removes the age limit from the topics it reads, and regularly deletes messages that are older than
the limit and were read by all declared readers (`Topic.readers`). If no reader ever ran, Kafka deletes by age. Messages
that stay unread for long take disk space, as long as there is some.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from services.kit.bus.brokers import Brokers
from services.kit.bus.topics import Topic

logger = logging.getLogger(__name__)

_EVERY_S = 600.0
_RETRY_S = 10.0
_FOR_EVER = "-1"


def keep_until_read(admin: KafkaAdminClient, topics: Sequence[Topic]) -> None:
    """Removes the age limit of topics that have one.

    Raises:
        KafkaError: the broker is unavailable or refuses.
    """
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in topics]
    present = admin.describe_configs(resources, config_filter="all")["topic"]
    limited = [name for name, settings in present.items() if settings["retention.ms"]["value"] != _FOR_EVER]
    if limited:
        admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name, {"retention.ms": _FOR_EVER}) for name in limited]
        )
        logger.info("Kafka keeps %s until it is read", ", ".join(sorted(limited)))


def delete_read(admin: KafkaAdminClient, consumer: KafkaConsumer, topics: Sequence[Topic], now_ms: int) -> int:
    """Deletes messages older than a topic's retention that all of its readers have read.

    Returns:
        The number of deleted offsets.

    Raises:
        KafkaError: the broker is unavailable or refuses.
    """
    places = {TopicPartition(topic.name, number): topic for topic in topics for number in range(topic.partitions)}
    begins, ends = consumer.beginning_offsets(list(places)), consumer.end_offsets(list(places))
    young = consumer.offsets_for_times({place: now_ms - topic.retention_ms for place, topic in places.items()})
    read = _read_by_all(admin, places)
    until = {
        place: min(young[place].offset if young.get(place) else ends[place], read.get(place, 0)) for place in places
    }
    until = {place: offset for place, offset in until.items() if offset > begins[place]}
    if until:
        admin.delete_records(until)
    return sum(offset - begins[place] for place, offset in until.items())


def _read_by_all(admin: KafkaAdminClient, places: Mapping[TopicPartition, Topic]) -> Mapping[TopicPartition, int]:
    """The offset up to which every reader has read, by partition; without partitions that a reader has not begun."""
    groups = sorted({group for topic in places.values() for group in topic.readers})
    committed = admin.list_group_offsets(dict.fromkeys(groups))
    found: dict[TopicPartition, int] = {}
    for place, topic in places.items():
        offsets = [committed[group][place].offset for group in topic.readers if place in committed[group]]
        if len(offsets) == len(topic.readers):
            found[place] = max(0, min(offsets))
    return found


class RetentionGuard:
    """Keeps messages until they are read, on behalf of one reader. `start` and `stop` it once."""

    def __init__(self, bootstrap: Brokers | str, topics: Sequence[Topic]) -> None:
        self._bootstrap = Brokers.of(bootstrap)
        self._topics = [topic for topic in topics if topic.readers]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the check under way."""
        self._stop.set()

    def _run(self) -> None:
        while self._topics:
            pause = _EVERY_S
            try:
                self.look()
            except (KafkaError, ValueError, OSError) as error:
                logger.warning("cannot check the retention of topics yet: %s", error)
                pause = _RETRY_S
            if self._stop.wait(pause):
                return

    def look(self) -> int:
        """Configures the topics and deletes messages that are old and read.

        Returns:
            The number of deleted offsets.

        Raises:
            KafkaError: the broker is unavailable or refuses.
        """
        options = self._bootstrap.options()
        admin = KafkaAdminClient(**options, client_id="tidemill-retention")
        try:
            keep_until_read(admin, self._topics)
            consumer = KafkaConsumer(**options, client_id="tidemill-retention")
            try:
                deleted = delete_read(admin, consumer, self._topics, int(time.time() * 1000))
            finally:
                consumer.close()
        finally:
            admin.close()
        if deleted:
            logger.info("deleted %d messages that were old and read", deleted)
        return deleted
