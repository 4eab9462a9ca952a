"""The gateway's own metrics, in addition to those of every process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from services.kit.telemetry import schema


class Refusals:
    """Counts requests that are refused before they reach a route."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counter = Counter(
            schema.DOOR_REFUSALS,
            "Requests that broke a limit of the HTTP API, and connections that broke one of either door",
            ("reason",),
            registry=registry,
        )

    def count(self, reason: str) -> None:
        """Counts one; `reason` is one of the door's own codes, such as `headers_too_large`."""
        self._counter.labels(reason).inc()


class BatchRequests:
    """Counts requests of batches."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counter = Counter(
            schema.BATCH_REQUESTS, "Requests of batches that were answered", ("result",), registry=registry
        )

    def count(self, result: str) -> None:
        """Counts one; `result` is `completed` or `failed`."""
        self._counter.labels(result).inc()
