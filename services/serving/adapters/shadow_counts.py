"""What became of the copies for shadow versions, as a metric."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class PrometheusShadowCounts:
    """Implements `services.serving.app.ports.ShadowCounts`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._copies = Counter(
            "shadow_calls", "Copies of calls for shadow versions, by outcome", ["outcome"], registry=registry
        )

    def count(self, outcome: str) -> None:
        """See the port."""
        self._copies.labels(outcome).inc()
