"""What cascades did, as a metric."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class PrometheusCascadeCounts:
    """Implements `services.serving.app.ports.CascadeCounts`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._texts = Counter(
            "cascade_texts",
            "Texts of a classifier with a larger one behind it, by outcome",
            ["model", "outcome"],
            registry=registry,
        )

    def count(self, model: str, outcome: str, texts: int) -> None:
        """See the port."""
        self._texts.labels(model, outcome).inc(texts)
