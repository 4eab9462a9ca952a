"""Notices that the process of a model in Triton has died.

Triton 2.51 neither starts such a process again nor calls its model unready: later requests fail with a text after a
second, and what was under way stays silent for ever. So that text counts as a death notice, and a stream or request
that has been silent for a while has the model asked whether it still lives.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from services.kit.errors import UnavailableError
from services.kit.grpc.request_streams import RequestStream
from services.serving.adapters.triton_errors import DIED, is_death, not_loaded, triton_unavailable
from services.serving.adapters.triton_tensors import once
from services.serving.app.ports import Deaths, NotLoadedError
from services.serving.domain.names import shown

logger = logging.getLogger(__name__)

_PROBE_S = 10.0


@dataclass(frozen=True, slots=True)
class Asked:
    """When a request was sent: in seconds of the event loop, and the model's generation in the routes then."""

    at: float
    generation: int


class WatchedStream:
    """A stream under way. `dead` is set before its call is cancelled because the model's process died."""

    def __init__(self, model: str, call: Any, began: float) -> None:
        self.model = model
        self.call = call
        self.began = began
        self.dead = False
        self.last_heard = began

    def heard(self) -> None:
        """A piece came."""
        self.last_heard = asyncio.get_running_loop().time()


class Liveness:
    """Death notices and silent streams of the models in one Triton; lives in one event loop."""

    def __init__(self, channel: grpc.aio.Channel, deaths: Deaths, *, silence_s: float = 10.0) -> None:
        """Args:
        channel: to Triton.
        deaths: takes note of models whose process has died.
        silence_s: seconds without a piece after which a stream's model is asked.
        """
        self._stub = GRPCInferenceServiceStub(channel)
        self._deaths = deaths
        self._silence_s = silence_s
        self._streams: set[WatchedStream] = set()
        self._on_death: list[Callable[[str, float], object]] = []

    def on_death(self, call: Callable[[str, float], object]) -> None:
        """Calls `call` with a model whose process died and the time, of the event loop, before which it was asked."""
        self._on_death.append(call)

    def asked(self, model: str) -> Asked:
        """A request to this model is sent now."""
        return Asked(asyncio.get_running_loop().time(), self._deaths.generation(model))

    def notice_death(self, model: str, message: str, asked: Asked) -> bool:
        """Whether Triton's text is a death notice; if so, ends the streams that had begun before it was `asked` for."""
        if not is_death(message):
            return False
        self._deaths.report(model, asked.generation)
        for stream in self._streams:
            # A stream that began later may belong to the process that was loaded meanwhile.
            if stream.model == model and stream.began <= asked.at:
                stream.dead = True
                stream.call.cancel()
        for call in self._on_death:
            call(model, asked.at)
        return True

    def died(self, model: str, asked: Asked) -> None:
        """Reports a model whose process died without a notice under a request sent at `asked`."""
        self._deaths.report(model, asked.generation)
        for call in self._on_death:
            call(model, asked.at)

    def missing(self, model: str, asked: Asked) -> None:
        """Reports a model that Triton lacks, by a request sent at `asked`: what is asked for comes back first."""
        self._deaths.report(model, asked.generation)

    def dead(self, model: str, why: str = DIED) -> UnavailableError:
        """The error for a request to a model whose process has died, which was reported."""
        return triton_unavailable(model, why, self._deaths.back_s(model))

    def not_loaded(self, model: str) -> NotLoadedError:
        """The error for a request to a model that Triton lacks, which was reported."""
        return not_loaded(model, self._deaths.back_s(model))

    @asynccontextmanager
    async def watched(self, model: str, call: Any) -> AsyncIterator[WatchedStream]:
        """Watches a stream for the length of the block."""
        stream = WatchedStream(model, call, asyncio.get_running_loop().time())
        self._streams.add(stream)
        watcher = asyncio.create_task(self._watch(stream))
        try:
            yield stream
        finally:
            watcher.cancel()
            self._streams.discard(stream)

    async def _watch(self, stream: WatchedStream) -> None:
        loop = asyncio.get_running_loop()
        while True:
            silent_for = loop.time() - stream.last_heard
            if silent_for < self._silence_s:
                await asyncio.sleep(self._silence_s - silent_for)
                continue
            await self.ask(stream.model)
            await asyncio.sleep(self._silence_s)

    async def ask(self, model: str) -> None:
        """Asks a model whether its process lives: sends what a living one refuses at once, however busy it is."""
        asked = self.asked(model)
        probe = once(pb.ModelInferRequest(model_name=model))
        message = ""
        try:
            async for response in RequestStream(self._stub.ModelStreamInfer(probe, timeout=_PROBE_S)):
                message = response.error_message or message
        except grpc.aio.AioRpcError as error:
            message = error.details() or ""
        if self.notice_death(model, message, asked):
            logger.warning("the process of %s in Triton has died", shown(model))
