"""Reports versions whose process in Triton has died, or that it lacks, to the control plane, which loads them again.

`model` is Triton's name of a version.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from tidemill.inference.v1 import inference_service_pb2 as pb

from services.serving.app.routing import RoutingTable
from services.serving.domain.names import model_name, parse_server_model, shown

logger = logging.getLogger(__name__)

_PAUSE_S = 1.0
_REPORT_S = 5.0
# When what callers still miss is reported again: a control plane that was started again has forgotten it.
_AGAIN_S = 10.0
# Callers are asked to come back after the time that the last load took, within these. The next one may be quicker.
_SOONEST_S, _LATEST_S = 1.0, 30.0


class DeathReports:
    """Implements `services.serving.app.ports.Deaths`; lives in one event loop. At most one report a version waits."""

    def __init__(self, stub: Any, table: RoutingTable) -> None:
        """Args:
        stub: an asynchronous stub of InferenceService.
        table: the routes, whose generations the reports name.
        """
        self._stub = stub
        self._table = table
        self._waiting: dict[str, int] = {}
        self._reported: dict[str, tuple[int, float]] = {}
        """The generation that was last reported of a model, and when (of the event loop)."""
        self._missed: dict[str, tuple[int, float]] = {}
        """The generation in which a model was missed, and since when."""
        self._changed = asyncio.Event()

    def generation(self, model: str) -> int:
        """See the port."""
        return self._table.generation(model)

    def report(self, model: str, generation: int) -> None:
        """See the port."""
        if generation < self._table.generation(model):
            return
        now = asyncio.get_running_loop().time()
        if self._missed.get(model, (-1, 0.0))[0] < generation:
            self._missed[model] = (generation, now)
        before, at = self._reported.get(model, (-1, 0.0))
        if generation > before or now - at >= _AGAIN_S:
            self._waiting[model] = generation
            self._changed.set()

    def back_s(self, model: str) -> float:
        """See the port."""
        version = self._table.routed(model)
        if version is None:
            return _SOONEST_S
        now = asyncio.get_running_loop().time()
        generation, since = self._missed.get(model, (-1, now))
        passed = now - since if generation >= version.generation else 0.0
        return min(max(version.load_s - passed, _SOONEST_S), _LATEST_S)

    async def run(self) -> None:
        """Sends what waits until it is cancelled. What cannot be sent waits for the control plane."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            for model, generation in list(self._waiting.items()):
                if not await self._sent(model, generation):
                    await asyncio.sleep(_PAUSE_S)
                    self._changed.set()
                    break
                self._reported[model] = (generation, asyncio.get_running_loop().time())
                if self._waiting.get(model) == generation:
                    del self._waiting[model]

    async def _sent(self, model: str, generation: int) -> bool:
        if generation < self._table.generation(model):
            return True  # it was loaded again meanwhile
        found = parse_server_model(model)
        if found is None:
            return True  # not a version of ours, so it is in no route either
        request = pb.ReportModelFailureRequest(model=model_name(found[0]), version=found[1], generation=generation)
        try:
            await self._stub.ReportModelFailure(request, timeout=_REPORT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return False
            logger.error("inference refused a report about %s: %s", shown(model), error.details())
        return True
