"""Fails requests to Triton at once while it does not answer, instead of letting each wait for its deadline.

Four bounds, one for each way in which a server goes silent:

- Triton itself is frozen: while requests wait and nothing was heard for a while, it is asked whether it lives. If it
  does not say so, all that waits ends with UNAVAILABLE, and nothing is sent until it answers again.
- One model is stuck: a circuit breaker (Nygard, Release It!). After a few requests in a row without an answer its
  callers get UNAVAILABLE at once; after a pause one request is let through as a probe.
- A model's process has died: requests that it held would stay silent for ever. A model that has been silent for a
  while is asked, and once its death is known, by that or by another request, what was sent to it before ends.
- Callers come faster than a model answers: a limited number may wait, further ones get RESOURCE_EXHAUSTED with the time
  that the queue needs; whoever has less than a fair share of it is admitted still.

It lives in one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from services.kit.errors import ResourceExhaustedError
from services.serving.adapters.triton_errors import DIED, triton_unavailable
from services.serving.adapters.triton_liveness import Liveness
from services.serving.adapters.triton_streams import TritonStream, ended
from services.serving.adapters.waiting import Waiting
from services.serving.app.ports import Deaths
from services.serving.domain.names import facts, shown

logger = logging.getLogger(__name__)

_NO_ANSWER = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long silence may last, and how much may wait.

    `silence_s` without any answer before Triton is asked whether it lives; each such question waits `probe_s`, and
    `probes` of them in a row must fail. A model that answered nothing for `model_silence_s` is asked whether its
    process lives. `waiting` requests of a model at once. `failures` in a row open a model's breaker for `open_s`, twice
    as long each time until `longest_open_s`.
    """

    model_silence_s: float = 10.0
    silence_s: float = 2.0
    probe_s: float = 2.0
    probes: int = 2
    waiting: int = 256
    failures: int = 3
    open_s: float = 2.0
    longest_open_s: float = 30.0


class GuardedRequest:
    """One caller's request: the calls to Triton that it waits for."""

    def __init__(self, guard: TritonGuard, model: str, caller: str, began: float, generation: int) -> None:
        self._guard = guard
        self.caller = caller
        self.model = model
        self.began = began
        self.generation = generation
        self.calls: set[Any] = set()
        self.ended_because = ""
        """Why the guard ended its calls, if it did."""
        self.retry_after_s = 0.0

    async def answer(self, call: Any) -> Any:
        """Awaits a call, which continues to its end if the caller leaves."""
        self.watch(call)
        await ended(call)
        response = await call
        self.heard()
        return response

    def watch(self, call: Any) -> None:
        """Ends the call when Triton is found to be frozen."""
        self.calls.add(call)

    def heard(self) -> None:
        """Triton answered something."""
        self._guard.heard(self.model)

    def when_streams_ended(self, do: Callable[[], None]) -> None:
        """Calls `do` once its streams have ended, now if they have."""
        left = {call for call in self.calls if isinstance(call, TritonStream) and not call.done()}

        def one_ended(stream: TritonStream) -> None:
            left.discard(stream)
            if not left:
                do()

        if not left:
            do()
        for stream in tuple(left):
            stream.when_ended(partial(one_ended, stream))

    def end(self, because: str, retry_after_s: float) -> None:
        """Ends its calls; its caller gets UNAVAILABLE with the reason."""
        self.ended_because, self.retry_after_s = because, retry_after_s
        for call in self.calls:
            call.cancel()


@dataclass(slots=True)
class _Breaker:
    """State of one model."""

    waiting: Waiting = field(default_factory=Waiting)
    failures: int = 0
    last_heard: float = 0.0
    open_until: float = 0.0
    pause_s: float = 0.0
    trying: GuardedRequest | None = field(default=None)

    @property
    def is_open(self) -> bool:
        return self.pause_s > 0


class TritonGuard:
    """Admits requests."""

    def __init__(
        self, channel: grpc.aio.Channel, liveness: Liveness, deaths: Deaths, limits: Limits | None = None
    ) -> None:
        """Args:
        channel: to Triton.
        liveness: asks models whether their processes live.
        deaths: takes note of models that did not even answer the probe.
        limits: see there.
        """
        self._stub = GRPCInferenceServiceStub(channel)
        self._limits = limits or Limits()
        self._deaths = deaths
        self._liveness = liveness
        self._asked: dict[str, float] = {}
        self._asking: set[asyncio.Task[None]] = set()
        liveness.on_death(self._end_of_process)
        self._requests: set[GuardedRequest] = set()
        self._breakers: defaultdict[str, _Breaker] = defaultdict(_Breaker)
        self._last_heard = 0.0
        self._frozen = False
        self._watcher: asyncio.Task[None] | None = None

    def heard(self, model: str) -> None:
        """Triton answered a request for this model."""
        self._last_heard = self._breakers[model].last_heard = _now()

    @asynccontextmanager
    async def request(self, model: str, caller: str = "") -> AsyncIterator[GuardedRequest]:
        """A request to a model, for the length of the block; its gRPC errors pass through. `caller`: whose it is.

        Raises:
            UnavailableError: Triton or the model does not answer now; at once, or as soon as that is known.
            ResourceExhaustedError: too many requests wait already.
        """
        breaker = self._breakers[model]
        request = GuardedRequest(self, model, caller, _now(), self._deaths.generation(model))
        self._admit(request, breaker)
        self._requests.add(request)
        breaker.waiting.enter(caller)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        try:
            yield request
        except asyncio.CancelledError:
            if request.ended_because:
                raise triton_unavailable(model, request.ended_because, request.retry_after_s) from None
            # The caller gave up, as a rule because its deadline had passed.
            if _now() - request.began >= self._limits.silence_s and breaker.last_heard <= request.began:
                self._failed(request, breaker)
            raise
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._failed(request, breaker)
            elif error.code() is not grpc.StatusCode.UNAVAILABLE:
                # A refused connection is neither: it fails at once by itself.
                self._answered(request, breaker)
            raise
        else:
            self._answered(request, breaker)
        finally:
            # A model still writes what a caller left: until that has ended, it counts.
            request.when_streams_ended(partial(_leave, breaker.waiting, request))
            if breaker.trying is request:
                breaker.trying = None
            self._requests.discard(request)

    def _admit(self, request: GuardedRequest, breaker: _Breaker) -> None:
        model = request.model
        if self._frozen:
            raise triton_unavailable(model, "Triton does not answer", self._limits.probe_s)
        if breaker.is_open:
            left = breaker.open_until - request.began
            if left > 0 or breaker.trying is not None:
                raise triton_unavailable(model, f"its last {breaker.failures} requests got no answer", max(left, 1.0))
            breaker.trying = request
        wait = breaker.waiting.refused_for_s(request.caller, self._limits.waiting)
        if wait is not None:
            raise ResourceExhaustedError(
                f"{shown(model)} is busy: {breaker.waiting.count} requests are waiting already.",
                reason="MODEL_BUSY",
                metadata=facts(model),
                retry_after_s=wait,
            )

    def _answered(self, request: GuardedRequest, breaker: _Breaker) -> None:
        self.heard(request.model)
        if breaker.is_open:
            logger.info("%s answers again", shown(request.model))
        breaker.failures, breaker.pause_s = 0, 0.0

    def _failed(self, request: GuardedRequest, breaker: _Breaker) -> None:
        breaker.failures += 1
        if breaker.failures < self._limits.failures:
            return
        was_open = breaker.is_open
        if was_open and breaker.trying is not request:
            # Of those that were under way when it opened.
            return
        breaker.pause_s = min(max(self._limits.open_s, 2 * breaker.pause_s), self._limits.longest_open_s)
        breaker.open_until = _now() + breaker.pause_s
        if was_open:
            self._deaths.report(request.model, request.generation)
        else:
            logger.warning(
                "%s gave no answer to %d requests in a row; its callers are refused until it does",
                shown(request.model),
                breaker.failures,
            )

    async def _watch(self) -> None:
        """Runs while requests wait, and until a frozen Triton answers again."""
        failed = 0
        while self._requests or self._frozen:
            await asyncio.sleep(self._limits.silence_s / 2)
            now = _now()
            self._ask_silent_models(now)
            oldest = min((request.began for request in self._requests), default=now)
            if not self._frozen and now - max(self._last_heard, oldest) < self._limits.silence_s:
                failed = 0
                continue
            if await self._lives():
                failed, self._last_heard = 0, _now()
                if self._frozen:
                    self._frozen = False
                    self._breakers.clear()
                    logger.info("Triton answers again")
                continue
            failed += 1
            if failed >= self._limits.probes:
                self._freeze()

    def _ask_silent_models(self, now: float) -> None:
        waiting: dict[str, float] = {}
        for request in self._requests:
            waiting[request.model] = min(request.began, waiting.get(request.model, now))
        for model, began in waiting.items():
            since = max(began, self._breakers[model].last_heard, self._asked.get(model, 0.0))
            if now - since >= self._limits.model_silence_s:
                self._asked[model] = now
                task = asyncio.create_task(self._liveness.ask(model))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    def _end_of_process(self, model: str, at: float) -> None:
        for request in list(self._requests):
            if request.model == model and request.began <= at:
                request.end(DIED, self._deaths.back_s(model))

    async def _lives(self) -> bool:
        try:
            await self._stub.ServerLive(pb.ServerLiveRequest(), timeout=self._limits.probe_s)
        except grpc.aio.AioRpcError as error:
            return error.code() not in _NO_ANSWER
        return True

    def _freeze(self) -> None:
        if not self._frozen:
            self._frozen = True
            logger.error("Triton does not answer; %d waiting requests are refused", len(self._requests))
        for request in list(self._requests):
            request.end("Triton does not answer", self._limits.probe_s)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _leave(waiting: Waiting, request: GuardedRequest) -> None:
    waiting.leave(request.caller, request.began, _now())
