"""Loads by which the stack scales, each in processes that would be right for it."""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from infra.stack.addresses import HOST, Addresses
from infra.stack.probes import ProbeError

_TIMEOUT_S = 3.0


class MessagesWaiting:
    """By the messages that a consumer group has still to read, as its service's metrics say (KEDA's Kafka scaler)."""

    def __init__(self, service: str, token_file: Path, group: str, per_process: int) -> None:
        self._use = f"{service}_metrics"
        self._token_file = token_file
        self._group = group
        self._per_process = per_process

    def processes(self, addresses: Addresses, pids: Sequence[int]) -> tuple[float, str]:
        """See `Demand.processes`."""
        # Slow to import, and only a stack that scales needs them.
        from prometheus_client.parser import text_string_to_metric_families

        from services.kit.telemetry.schema import BUS_CONSUMER_LAG

        waiting = sum(
            sample.value
            for family in text_string_to_metric_families(self._metrics(addresses))
            for sample in family.samples
            if sample.name == BUS_CONSUMER_LAG and sample.labels.get("group") == self._group
        )
        return waiting / self._per_process, f"{waiting:,.0f} messages wait, {self._per_process:,} for each process"

    def _metrics(self, addresses: Addresses) -> str:
        connection = http.client.HTTPConnection(HOST, addresses.ports[self._use], timeout=_TIMEOUT_S)
        try:
            token = self._token_file.read_text(encoding="utf-8").strip()
            connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            text = response.read().decode()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ProbeError(f"its metrics: {error}") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ProbeError(f"its metrics answered {response.status}")
        return text


class ProcessorShare:
    """By the processor time of its processes, for a service whose processes use one processor each at most."""

    def __init__(self, full: float) -> None:
        """Args:
        full: share of a processor at which a process has enough to do.
        """
        self._full = full
        self._before: tuple[float, dict[int, float]] | None = None

    def processes(self, addresses: Addresses, pids: Sequence[int]) -> tuple[float, str]:
        """See `Demand.processes`."""
        now, used = time.monotonic(), {pid: seconds for pid in pids if (seconds := _processor_s(pid)) is not None}
        before, self._before = self._before, (now, used)
        if before is None or now <= before[0]:
            raise ProbeError("its processor time is known once only")
        busy = sum(seconds - before[1][pid] for pid, seconds in used.items() if pid in before[1])
        share = busy / (now - before[0])
        return share / self._full, f"they use {share:.1f} processors, {self._full:g} are enough for each"


def _processor_s(pid: int) -> float | None:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)
