"""What a topic of a real Kafka holds."""

from __future__ import annotations

import os
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition

from services.kit.bus.brokers import Brokers
from services.kit.bus.topics import Topic


def read_all(bootstrap: str, topic: Topic) -> list[tuple[dict[str, bytes], bytes]]:
    """Headers and values of all messages that a topic holds now.

    TIDEMILL_KAFKA_USER and TIDEMILL_KAFKA_PASSWORD_FILE are the user at the brokers, as for a service.
    """
    user, password = os.environ.get("TIDEMILL_KAFKA_USER"), os.environ.get("TIDEMILL_KAFKA_PASSWORD_FILE")
    options = Brokers(bootstrap, user, Path(password) if password else None).options()
    consumer = KafkaConsumer(**options, enable_auto_commit=False, isolation_level="read_committed")
    try:
        partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning(*partitions)
        found: list[tuple[dict[str, bytes], bytes]] = []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(timeout_ms=500).values():
                found += [(dict(record.headers), record.value) for record in records]
        return found
    finally:
        consumer.close()
