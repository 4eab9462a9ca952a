"""The metrics of several processes of one service as one answer.

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

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

logger = logging.getLogger(__name__)

_ANSWER_S = 2.0
LABEL = "process"


class ProcessMetrics:
    """The registry of this process, and the way to those of the others."""

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
        self._numbers = range(1, processes + 1)

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

    def exposition(self) -> bytes:
        """All processes' metrics in Prometheus' format; those of a process that does not answer are left out.

        Blocks for some seconds at most.
        """
        own = generate_latest(self._registry)
        if self._sockets is None:
            return own
        texts = {self._process: own}
        sockets = {number: self._socket(self._sockets, number) for number in self._numbers if number != self._process}
        if present := [number for number, path in sockets.items() if path.exists()]:
            with ThreadPoolExecutor(len(present), thread_name_prefix="process-metrics") as pool:
                texts |= zip(
                    present, pool.map(self._ask, present, [sockets[number] for number in present]), strict=True
                )
        return generate_latest(_registry_of({number: texts[number].decode() for number in sorted(texts)}))

    def _ask(self, number: int, path: Path) -> bytes:
        parts = []
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_ANSWER_S)
                connection.connect(str(path))
                while part := connection.recv(65536):
                    parts.append(part)
        except OSError as error:
            logger.warning("the metrics of %s process %d are missing: %s", self._service, number, error)
            return b""
        return b"".join(parts)

    def _socket(self, folder: Path, number: int) -> Path:
        return folder / f"{self._service}-{number}.metrics"


class _Merged:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def _registry_of(texts: dict[int, str]) -> CollectorRegistry:
    merged: dict[str, Metric] = {}
    for number, text in texts.items():
        for family in text_string_to_metric_families(text):
            known = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                known.add_sample(sample.name, {**sample.labels, LABEL: str(number)}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Merged(merged.values()))
    return registry
