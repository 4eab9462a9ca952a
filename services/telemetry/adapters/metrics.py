"""Metrics of the intake, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.kit.telemetry import schema


class PrometheusObserver:
    """Implements `IntakeObserver`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._documents = Counter(
            schema.TELEMETRY_DOCUMENTS,
            "Log lines and spans by outcome",
            ("signal", "fate"),
            registry=registry,
        )
        self._queue = Gauge(
            schema.TELEMETRY_QUEUE_BYTES, "Bytes waiting to be written to Elasticsearch", registry=registry
        )
        self._bulk = Histogram(
            schema.TELEMETRY_BULK_LATENCY,
            "Seconds that Elasticsearch takes for a bulk",
            buckets=schema.REQUEST_LATENCY_BUCKETS,
            registry=registry,
        )

    def settled(self, signal: str, status: str, count: int) -> None:
        """Counts documents."""
        self._documents.labels(signal, status).inc(count)

    def queued(self, size: int) -> None:
        """Sets the size of the queue, in bytes."""
        self._queue.set(size)

    def bulk(self, seconds: float) -> None:
        """Records the duration of a bulk."""
        self._bulk.observe(seconds)
