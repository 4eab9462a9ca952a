"""The real Kafka's topics are those of the one declared table."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

import pytest
from kafka import KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewTopic

from services.kit.bus.kafka import ensure_topics
from services.kit.bus.topics import INBOUND, MAX_MESSAGE_BYTES, TOPICS, Topic
from tests.contract.bus.conftest import KafkaBus

pytestmark = pytest.mark.real


def test_topics_are_made_once_as_the_table_declares_them(kafka_bus: KafkaBus) -> None:
    for _ in range(2):
        ensure_topics(kafka_bus.bootstrap)
    admin = KafkaAdminClient(bootstrap_servers=kafka_bus.bootstrap)
    found = {item["name"]: len(item["partitions"]) for item in admin.describe_topics([t.name for t in TOPICS])}
    assert found == {topic.name: topic.partitions for topic in TOPICS}
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in TOPICS]
    settings = admin.describe_configs(resources)["topic"]
    admin.close()
    assert {name: int(setting["retention.ms"]["value"]) for name, setting in settings.items()} == {
        topic.name: topic.retention_ms for topic in TOPICS
    }
    assert {setting["max.message.bytes"]["value"] for setting in settings.values()} == {str(MAX_MESSAGE_BYTES)}


def configs(bootstrap: str, topic: Topic) -> dict[str, str]:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name)], config_filter="all")
    admin.close()
    return {name: setting["value"] for name, setting in found["topic"][topic.name].items()}


def test_topics_of_an_older_version_get_the_declared_settings(kafka_bus: KafkaBus) -> None:
    old = Topic(f"test.old.{uuid.uuid4().hex}", 1, 1000, "any", "messages")
    admin = KafkaAdminClient(bootstrap_servers=kafka_bus.bootstrap)
    admin.create_topics([NewTopic(old.name, 1, 1, topic_configs={"retention.ms": "1000", "segment.ms": "7000000"})])
    admin.close()
    new = replace(old, retention_ms=5000)
    ensure_topics(kafka_bus.bootstrap, [new])
    found = configs(kafka_bus.bootstrap, new)
    assert new.configs.items() <= found.items()
    assert found["segment.ms"] == "7000000", "what the table does not speak of stays"
    # An operator's longer retention holds data that no one else has.
    ensure_topics(kafka_bus.bootstrap, [replace(new, retention_ms=10)])
    assert configs(kafka_bus.bootstrap, new)["retention.ms"] == "5000"


def test_an_inbound_message_with_an_old_time_is_as_young_as_its_arrival(kafka_bus: KafkaBus) -> None:
    ensure_topics(kafka_bus.bootstrap)
    assert configs(kafka_bus.bootstrap, INBOUND)["message.timestamp.type"] == "LogAppendTime"
    producer = KafkaProducer(bootstrap_servers=kafka_bus.bootstrap)
    long_ago = 1_000_000_000_000
    before = time.time() * 1000
    stored = producer.send(INBOUND.name, value=b"old", timestamp_ms=long_ago).get(30)
    producer.close()
    # Retention is measured by this time.
    assert stored.timestamp >= before - 60_000
