"""The gateway's own metrics, beside those of every process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from services.kit.telemetry import schema


class Refusals:
    """Counts what the doors refuse before a route sees it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counter = Counter(
            schema.DOOR_REFUSALS,
            "Requests and connections that broke a limit of the HTTP door",
            ("reason",),
            registry=registry,
        )

    def count(self, reason: str) -> None:
        """Counts one; `reason` is one of the door's own codes, such as `headers_too_large`."""
        self._counter.labels(reason).inc()
