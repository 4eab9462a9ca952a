"""Copies of calls for the shadow versions of a route.

A copy is sent once the caller's answer is complete, in a task of its own: the caller waits for nothing, and the shadow
takes no processor time from the answer that it copies. The number of copies at once is limited, and further ones are
dropped and counted: a shadow that is slower than the model would otherwise collect them without end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from services.kit.clock import Clock
from services.kit.errors import TidemillError
from services.serving.app.ports import InferenceServer, Served, ServedLog, ShadowCounts, is_fault_of_version, new_answer
from services.serving.app.predicting import predicted
from services.serving.app.routing import RoutingTable
from services.serving.domain.answer import Prompt, Sampling
from services.serving.domain.names import ModelReference
from services.serving.domain.route import RoutedVersion

logger = logging.getLogger(__name__)

_MAX_COPIES = 16

Copy = Callable[[RoutedVersion, str], Awaitable[None]]
"""Sends a copy to a version, chosen by the route of this etag."""


class Shadows:
    """Sends copies; lives in one event loop. Their answers go to the log of answers, with the answer they shadow."""

    def __init__(
        self,
        table: RoutingTable,
        server: InferenceServer,
        served: ServedLog,
        counts: ShadowCounts,
        clock: Clock,
        *,
        limit: int = _MAX_COPIES,
    ) -> None:
        """Args:
        table: the routes.
        server: answers.
        served: takes note of the answers.
        counts: takes note of what became of each copy.
        clock: measures the latency.
        limit: maximum number of copies at once.
        """
        self._table, self._server, self._served = table, server, served
        self._counts, self._clock, self._limit = counts, clock, limit
        self._under_way: set[asyncio.Task[None]] = set()

    def predicted(self, asked: ModelReference, texts: Sequence[str], answers: Sequence[str]) -> None:
        """Texts were classified for a caller; `answers` are the ids that it got, one for each text."""

        async def copy(version: RoutedVersion, etag: str) -> None:
            began = self._clock.monotonic()
            found = await predicted(self._server, version, texts)
            latency_ms, now = (self._clock.monotonic() - began) * 1000, self._clock.now()
            self._served.add(
                [
                    replace(
                        Served.of_prediction(new_answer(), version, item, latency_ms, now),
                        shadowed_answer=answer,
                        route_etag=etag,
                    )
                    for item, answer in zip(found, answers, strict=True)
                ]
            )

        self._copy(asked, self._noting("predict", answers[0], copy))

    def generated(self, asked: ModelReference, prompt: Prompt, sampling: Sampling, answer: str) -> None:
        """An answer was written for a caller, who got it under the id `answer`."""

        async def copy(version: RoutedVersion, etag: str) -> None:
            began = self._clock.monotonic()
            async with aclosing(self._server.generate(version, prompt, sampling)) as pieces:
                async for piece in pieces:
                    if not piece.finish_reason:
                        continue
                    latency_ms, now = (self._clock.monotonic() - began) * 1000, self._clock.now()
                    served = Served.of_generation(new_answer(), version, piece, latency_ms, now)
                    self._served.add([replace(served, shadowed_answer=answer, route_etag=etag)])
                    return

        self._copy(asked, self._noting("generate", answer, copy))

    def passed(self, asked: ModelReference, send: Callable[[RoutedVersion], Awaitable[object]]) -> None:
        """A call of KServe V2 was answered; `send` sends it to another version. Such answers have no ids to log."""

        async def copy(version: RoutedVersion, etag: str) -> None:
            await send(version)

        self._copy(asked, copy)

    def _noting(self, method: str, answer: str, copy: Copy) -> Copy:
        """The copy, which also records a failure of the shadow; `answer` is what the caller got."""

        async def noted(version: RoutedVersion, etag: str) -> None:
            began = self._clock.monotonic()
            try:
                await copy(version, etag)
            except Exception as error:
                if is_fault_of_version(error):
                    latency_ms = (self._clock.monotonic() - began) * 1000
                    served = Served.of_failure(version, method, error, latency_ms, self._clock.now())
                    self._served.add([replace(served, shadowed_answer=answer, route_etag=etag)])
                raise

        return noted

    def _copy(self, asked: ModelReference, copy: Copy) -> None:
        route = self._table.route(asked.model)
        if route is None or asked.version:  # a caller who names a version wants that one
            return
        for version in route.shadows:
            if len(self._under_way) >= self._limit:
                self._counts.count("dropped")
                continue
            task = asyncio.create_task(self._answered(version, route.etag, copy))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _answered(self, version: RoutedVersion, etag: str, copy: Copy) -> None:
        try:
            await copy(version, etag)
        except TidemillError as error:
            self._counts.count("failed")
            logger.warning("%s did not answer a copy: %s", version.name, error.message)
        except Exception:
            self._counts.count("failed")
            logger.exception("%s did not answer a copy", version.name)
        else:
            self._counts.count("answered")

    async def close(self) -> None:
        """Cancels copies that are still being answered."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
