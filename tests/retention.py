"""Deletes what a group of readers has not read yet, as Kafka does once a topic's retention has passed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import CoordinatorNotAvailableError

from services.kit.bus.topics import Topic
from tests.waiting import wait_until


def wait_until_read(bootstrap: str, topic: Topic, group: str) -> None:
    """Waits until the group has committed everything that the topic holds."""
    with _broker(bootstrap) as clients:
        wait_until(
            lambda: all(read == end for read, end in _places(*clients, topic, group).values()), "an empty backlog"
        )


def delete_unread(bootstrap: str, topic: Topic, group: str, kept: int) -> int:
    """Deletes messages until `kept` remain that the group has not read; returns how many unread ones went."""
    until, deleted = {}, 0
    with _broker(bootstrap) as (admin, consumer):
        for place, (read, end) in _places(admin, consumer, topic, group).items():
            keep = min(kept, end - read)
            kept -= keep
            deleted += end - read - keep
            if end - keep > read:
                until[place] = end - keep
        admin.delete_records(until)
    return deleted


@contextmanager
def _broker(bootstrap: str) -> Iterator[tuple[KafkaAdminClient, KafkaConsumer]]:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    yield admin, consumer
    consumer.close()
    admin.close()


def _places(
    admin: KafkaAdminClient, consumer: KafkaConsumer, topic: Topic, group: str
) -> dict[TopicPartition, tuple[int, int]]:
    """Of each partition, up to where the group has read it, and its end."""
    partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]

    def offsets() -> Any:
        try:
            return (admin.list_group_offsets({group: None})[group],)
        except CoordinatorNotAvailableError:  # a new broker makes the coordinators' topic when one is first asked for
            return None

    (committed,) = wait_until(offsets, f"the offsets of {group}")
    ends: dict[Any, int] = consumer.end_offsets(partitions)
    return {each: (int(committed[each].offset) if each in committed else 0, ends[each]) for each in partitions}
