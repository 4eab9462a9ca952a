"""The health of the services behind the gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_PROBE_S = 1.0
# A client of Kafka logs each attempt that fails.
_INFRASTRUCTURE_S = 15.0
_PATIENCE_S = 4.0
_SERVING = health_pb2.HealthCheckResponse.SERVING


class PartsHealth:
    """Checks the health of every service, at most once a second."""

    def __init__(
        self,
        channels: Mapping[str, grpc.aio.Channel],
        probes: Mapping[str, Callable[[], Awaitable[bool]]] | None = None,
    ) -> None:
        """Args:
        channels: to the services, by name.
        probes: whether a part that is not a service of ours answers, by name.
        """
        self._probes, self._probed, self._probed_at = dict(probes or {}), dict[str, str](), float("-inf")
        self._stubs = {name: health_pb2_grpc.HealthStub(channel) for name, channel in channels.items()}
        self._known: dict[str, dict[str, Any]] = {}
        self._asked_at = float("-inf")
        self._lock = asyncio.Lock()

    async def parts(self) -> dict[str, dict[str, Any]]:
        """What each service answered: `status`, and `latency_ms` or `message`."""
        async with self._lock:
            if time.monotonic() - self._asked_at > 1.0:
                answers = await asyncio.gather(*(self._ask(stub) for stub in self._stubs.values()))
                self._known = dict(zip(self._stubs, answers, strict=True))
                self._asked_at = time.monotonic()
            return self._known

    async def infrastructure(self) -> Mapping[str, str]:
        """`serving` or `unavailable` for each part that is not a service of ours; asked every few seconds at most."""
        async with self._lock:
            if time.monotonic() - self._probed_at > _INFRASTRUCTURE_S:
                answers = await asyncio.gather(*(_probe(each) for each in self._probes.values()))
                self._probed = dict(zip(self._probes, answers, strict=True))
                self._probed_at = time.monotonic()
            return self._probed

    async def _ask(self, stub: Any) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_PROBE_S)
        except grpc.aio.AioRpcError as error:
            return {"status": "unavailable", "message": error.details() or error.code().name}
        status = "serving" if answer.status == _SERVING else "not_serving"
        return {"status": status, "latency_ms": round((time.perf_counter() - started) * 1000, 2)}


async def _probe(answers: Callable[[], Awaitable[bool]]) -> str:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return "serving" if await answers() else "unavailable"
    except TimeoutError:
        return "unavailable"
