"""The metrics of several processes of one service as one registry.

Prometheus reaches one of them; it asks the others over their sockets and labels each with its number, so that a
process that starts again is seen as one counter that began at 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

_ANSWER_S = 2.0
LABEL = "process"


class ProcessMetrics(Collector):
    """Collects the metrics of this process, and those of the others over their sockets."""

    def __init__(
        self, registry: CollectorRegistry, service: str, sockets: Path | None, process: int, processes: int
    ) -> None:
        """Args:
        registry: of this process.
        service: its name, with which the names of the sockets begin.
        sockets: folder of the processes' sockets; None where there is one process only.
        process: the number of this one, from 1.
        processes: how many there are, at most: those that do not run have no socket.
        """
        self._registry = registry
        self._service = service
        self._sockets = sockets if processes > 1 else None
        self._process = process
        self._others = [number for number in range(1, processes + 1) if number != process]
        self.registry = registry
        """All processes' metrics; those of a process that does not answer are missing. May block for some seconds."""
        if self._sockets is not None:
            self.registry = CollectorRegistry()
            self.registry.register(self)

    async def serve(self) -> None:
        """Gives this process's metrics to the others until it is cancelled."""
        if self._sockets is None:
            await asyncio.Event().wait()
            return

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                writer.write(generate_latest(self._registry))
                await writer.drain()
            writer.close()

        path = self._socket(self._sockets, self._process)
        path.unlink(missing_ok=True)
        try:
            async with await asyncio.start_unix_server(answer, path) as server:
                await server.serve_forever()
        finally:
            path.unlink(missing_ok=True)

    def collect(self) -> Iterable[Metric]:
        """The families of all processes, each sample labelled with the number of its process."""
        families: dict[int, Iterable[Metric]] = {self._process: self._registry.collect()}
        assert self._sockets is not None
        sockets = {number: self._socket(self._sockets, number) for number in self._others}
        if present := {number: path for number, path in sockets.items() if path.exists()}:
            with ThreadPoolExecutor(len(present), thread_name_prefix="process-metrics") as pool:
                families |= zip(present, pool.map(self._ask, present, present.values()), strict=True)
        merged: dict[str, Metric] = {}
        for number in sorted(families):
            for family in families[number]:
                known = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    known.samples.append(sample._replace(labels={**sample.labels, LABEL: str(number)}))
        return merged.values()

    def _ask(self, number: int, path: Path) -> list[Metric]:
        parts = []
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_ANSWER_S)
                connection.connect(str(path))
                while part := connection.recv(65536):
                    parts.append(part)
            # Refuses what was cut off: the text has an end.
            return list(text_string_to_metric_families(b"".join(parts).decode()))
        except (OSError, ValueError) as error:
            logger.warning("the metrics of %s process %d are missing: %s", self._service, number, error)
            return []

    def _socket(self, folder: Path, number: int) -> Path:
        return folder / f"{self._service}-{number}.metrics"
