"""How far the budgets of triggers are used, as a Prometheus metric."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from services.kit.telemetry import schema


class PrometheusBudgetGauges:
    """Implements `services.pipeline.app.trigger_ports.BudgetGauges`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._used = Gauge(
            schema.TRIGGER_BUDGET_USED,
            "Share of a budget of 24 hours that is used; from 1 on no cycle starts by itself",
            ("pipeline", "budget"),
            registry=registry,
        )

    def show(self, pipeline: str, budget: str, share: float) -> None:
        """See the port."""
        self._used.labels(pipeline, budget).set(share)
