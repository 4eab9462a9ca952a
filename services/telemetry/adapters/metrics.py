"""What the intake does, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.kit.telemetry import schema


class PrometheusObserver:
    """Implements `IntakeObserver`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._documents = Counter(
            schema.TELEMETRY_DOCUMENTS,
            "Log lines and spans by what became of them",
            ("signal", "fate"),
            registry=registry,
        )
        self._queue = Gauge(schema.TELEMETRY_QUEUE_BYTES, "Bytes that wait for Elasticsearch", registry=registry)
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
        """Shows the queue."""
        self._queue.set(size)

    def bulk(self, seconds: float) -> None:
        """Measures a bulk."""
        self._bulk.observe(seconds)
