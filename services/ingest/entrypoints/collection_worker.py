"""Collects declared sources beside the server: orders what is due, and carries out the orders, several at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from collections.abc import Collection as Some
from functools import partial

from services.ingest.app.declared_sources import DeclaredSources
from services.ingest.app.interrupt import InterruptedReadError
from services.ingest.domain.declared_source import Collection
from services.ingest.domain.source_import import Import
from services.ingest.entrypoints.survey_pool import SurveyPool
from services.kit.errors import TidemillError, is_retryable
from services.kit.loops import step_forever

logger = logging.getLogger(__name__)

_EVERY_S = 1.0
_RETRY_S = 10.0

Answer = tuple[Import, bool]


class CollectionWorker:
    """Runs due and ordered collections; create it once, `run` it once."""

    def __init__(self, sources: DeclaredSources, surveys: SurveyPool, busy: Callable[[], Some[str]]) -> None:
        """What it needs.

        Args:
            sources: the use cases.
            surveys: threads for checking sources, which wait for those and nothing else.
            busy: the origins that are being read.
        """
        self._sources, self._surveys, self._busy = sources, surveys, busy
        self._in_hand: dict[str, asyncio.Task[Answer]] = {}
        self._retry_at: dict[str, float] = {}

    async def run(self) -> None:
        """Looks for work every second until cancelled."""
        await step_forever(self._step, "collecting", idle_s=_EVERY_S, survives_defects=True)

    async def carry_out(self, order: Collection, traceparent: str = "") -> Answer:
        """The import of an order, and whether it is an earlier one. The order is carried out though its caller leaves.

        Raises:
            TidemillError: see `DeclaredSources.carry_out`.
        """
        task = self._in_hand.get(order.order_id)
        if task is None:
            task = asyncio.create_task(
                self._surveys.run(partial(self._sources.carry_out, order, traceparent)), name=order.order_id
            )
            self._in_hand[order.order_id] = task
            task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def _step(self) -> None:
        await asyncio.to_thread(self._sources.forget_deleted, self._busy())
        now = asyncio.get_running_loop().time()
        for order in await asyncio.to_thread(self._sources.orders):
            if order.order_id not in self._in_hand and self._retry_at.get(order.order_id, 0.0) <= now:
                # Its end is `_ended`'s.
                asyncio.ensure_future(self.carry_out(order)).add_done_callback(_seen)

    def _ended(self, task: asyncio.Task[Answer]) -> None:
        order_id = task.get_name()
        self._in_hand.pop(order_id)
        self._retry_at.pop(order_id, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is None or isinstance(error, InterruptedReadError):
            return
        if not isinstance(error, TidemillError):
            logger.error("%s failed", order_id, exc_info=error)
        elif is_retryable(error):
            logger.warning("%s waits: %s", order_id, error.message)
        else:
            return
        self._retry_at[order_id] = asyncio.get_running_loop().time() + _RETRY_S


def _seen(task: asyncio.Future[Answer]) -> None:
    """Takes the error of a collection that no one waits for; it is logged where the order ended."""
    if not task.cancelled():
        task.exception()
