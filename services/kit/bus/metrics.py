"""Metrics of what consumer groups read, refuse and miss."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.kit.bus.port import LostMessages
from services.kit.telemetry import schema


class ConsumerMetrics:
    """How far a consumer group is behind, and what it refused."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("group", "topic")
        self._lag = Gauge(schema.BUS_CONSUMER_LAG, "Messages that a group has still to read", labels, registry=registry)
        self._refused = Counter(
            schema.BUS_DEAD_LETTERS, "Messages that a group could not handle", labels, registry=registry
        )

    def lag(self, group: str, topic: str, count: int) -> None:
        """Messages of the partitions of this member that it has still to read."""
        self._lag.labels(group, topic).set(count)

    def refused(self, group: str, topic: str) -> None:
        """Counts a dead letter."""
        self._refused.labels(group, topic).inc()


class LossMetrics:
    """Counts messages that the bus deleted before a group had read them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lost = Counter(
            schema.BUS_LOST_MESSAGES,
            "Messages that the bus deleted before a group had read them",
            ("group", "topic"),
            registry=registry,
        )

    def of_group(self, group: str) -> Callable[[LostMessages], None]:
        """The counter of a group."""

        def count(lost: LostMessages) -> None:
            self._lost.labels(group, lost.topic).inc(lost.count)

        return count
