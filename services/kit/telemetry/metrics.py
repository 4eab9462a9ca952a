"""Prometheus metrics of a process. The composition root creates the registry, nothing is created at import."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.kit.telemetry import schema
from services.kit.telemetry.scraping import ScrapeToken, serve_metrics

# Errors that are the caller's fault do not count as errors of the service.
_CALLERS_FAULT = frozenset(
    {
        "OK",
        "CANCELLED",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
        "ABORTED",
    }
)
_WINDOW_S = 300.0


class Space(Protocol):
    """Bytes of a disk."""

    @property
    def free(self) -> int:
        """Bytes that are free."""
        ...

    @property
    def reserve(self) -> int:
        """Below this many free bytes no new data is accepted."""
        ...


class _RecentRate:
    """Share of failures among the requests of the last five minutes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: deque[tuple[float, bool]] = deque(maxlen=100_000)

    def add(self, failed: bool) -> None:
        with self._lock:
            self._events.append((time.monotonic(), failed))

    def value(self) -> float:
        with self._lock:
            oldest = time.monotonic() - _WINDOW_S
            while self._events and self._events[0][0] < oldest:
                self._events.popleft()
            return sum(failed for _, failed in self._events) / len(self._events) if self._events else 0.0


class RequestMetrics:
    """Latency, count and errors of a process's requests, by endpoint."""

    def __init__(
        self, service_name: str, registry: CollectorRegistry | None = None, token: ScrapeToken | None = None
    ) -> None:
        self.service_name = service_name
        self.token = token
        """The token that a reader of the counters must send; None admits everyone who reaches the port."""
        self.registry = registry or CollectorRegistry()
        labels = ("service_name", "endpoint")
        self._latency = Histogram(
            schema.REQUEST_LATENCY,
            "Seconds from a request to its last answer",
            labels,
            buckets=schema.REQUEST_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self._requests = Counter(schema.REQUESTS, "Requests by result", (*labels, "code"), registry=self.registry)
        self._errors = Counter(
            schema.REQUEST_ERRORS, "Requests that failed by the service's fault", labels, registry=self.registry
        )
        self._rate = _RecentRate()
        Gauge(
            schema.ERROR_RATE,
            "Share of requests that failed by the service's fault, over the last five minutes",
            ("service_name",),
            registry=self.registry,
        ).labels(service_name).set_function(self._rate.value)

    def observe(self, endpoint: str, seconds: float, code: str) -> None:
        """Counts one request; `code` is the canonical name of its status, `OK` on success."""
        failed = code not in _CALLERS_FAULT
        self._latency.labels(self.service_name, endpoint).observe(seconds)
        self._requests.labels(self.service_name, endpoint, code).inc()
        self._rate.add(failed)
        if failed:
            self._errors.labels(self.service_name, endpoint).inc()

    def watch_disk(self, look: Callable[[], Space]) -> None:
        """Publishes how much of a disk is free and reserved; `look` is called at each scrape."""
        for name, words, value in (
            (schema.DISK_FREE_BYTES, "Bytes free on the disk of the mesh's state", lambda: look().free),
            (schema.DISK_RESERVE_BYTES, "Below this many free bytes no new data is accepted", lambda: look().reserve),
        ):
            gauge = Gauge(name, words, ("service_name",), registry=self.registry)
            gauge.labels(self.service_name).set_function(value)

    def serve(self, address: str, registry: CollectorRegistry | None = None) -> None:
        """Serves metrics at `host:port` from a thread of its own: those of `registry`, else this process's.

        Raises:
            FailedPreconditionError: the port is taken, or the address does not belong to this machine.
        """
        serve_metrics(address, registry or self.registry, self.token)
