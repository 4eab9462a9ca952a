"""Looks for drift as Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from services.kit.telemetry import schema
from services.pipeline.domain.drift import DriftLook


class PrometheusDriftGauges:
    """Implements `services.pipeline.app.drift_ports.DriftGauges`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("pipeline", "signal")
        self._p_value = Gauge(schema.DRIFT_P_VALUE, "p-value of the newest look for drift", labels, registry=registry)
        self._level = Gauge(schema.DRIFT_LEVEL, "p-value from which down it is drift", labels, registry=registry)
        self._found = Gauge(schema.DRIFT_FOUND, "1 if the newest look found drift", labels, registry=registry)

    def show(self, look: DriftLook) -> None:
        """See the port."""
        labels = (look.pipeline, look.signal.value)
        self._p_value.labels(*labels).set(look.p_value)
        self._level.labels(*labels).set(look.level)
        self._found.labels(*labels).set(look.found)
