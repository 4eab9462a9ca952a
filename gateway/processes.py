"""The metrics of several gateway processes, which share the ports, as one answer.

Prometheus reaches any one of them; it asks the others over their sockets and labels each with its number, so that a
process that starts again is seen as one counter that began at 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

logger = logging.getLogger(__name__)

_ANSWER_S = 2.0
LABEL = "process"


class ProcessMetrics:
    """The registry of this process, and the way to those of the others."""

    def __init__(self, registry: CollectorRegistry, sockets: Path | None, process: int, processes: int) -> None:
        """Args:
        registry: of this process.
        sockets: folder of the processes' sockets; None where there is one process only.
        process: the number of this one, from 1.
        processes: how many there are.
        """
        self._registry = registry
        self._sockets = sockets
        self._process = process
        self._numbers = range(1, processes + 1)

    async def serve(self) -> None:
        """Gives this process's metrics to the others until it is cancelled."""
        if self._sockets is None or len(self._numbers) == 1:
            await asyncio.Event().wait()
            return

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                writer.write(generate_latest(self._registry))
                await writer.drain()
            writer.close()

        path = self._socket(self._process)
        path.unlink(missing_ok=True)
        async with await asyncio.start_unix_server(answer, path) as server:
            await server.serve_forever()

    async def exposition(self) -> bytes:
        """All processes' metrics in Prometheus' format; those of a process that does not answer are left out."""
        own = generate_latest(self._registry)
        if self._sockets is None or len(self._numbers) == 1:
            return own
        others = [number for number in self._numbers if number != self._process]
        texts = dict(zip(others, await asyncio.gather(*map(self._ask, others)), strict=True))
        texts[self._process] = own
        return generate_latest(_registry_of({number: texts[number].decode() for number in self._numbers}))

    async def _ask(self, number: int) -> bytes:
        try:
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(self._socket(number))
                try:
                    return await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            logger.warning("the metrics of gateway process %d are missing: %s", number, str(error) or "no answer")
            return b""

    def _socket(self, number: int) -> Path:
        assert self._sockets is not None
        return self._sockets / f"gateway-{number}.metrics"


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
