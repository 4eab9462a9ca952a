"""The real Kafka's topics are those of the one declared table."""

from __future__ import annotations

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from services.kit.bus.kafka import ensure_topics
from services.kit.bus.topics import MAX_MESSAGE_BYTES, TOPICS
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
