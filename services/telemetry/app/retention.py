"""Deletes expired indices."""

from __future__ import annotations

import logging

from services.kit.clock import Clock
from services.telemetry.app.ports import DailyIndices
from services.telemetry.domain.days import Retention, day_of

logger = logging.getLogger(__name__)


class Sweeper:
    """Deletes the indices of expired days, and no other index."""

    def __init__(self, indices: DailyIndices, retention: Retention, clock: Clock) -> None:
        self._indices = indices
        self._retention = retention
        self._clock = clock

    async def sweep(self) -> list[str]:
        """Deletes expired indices.

        Returns:
            The names of the deleted indices.

        Raises:
            UnavailableError: the store does not answer.
        """
        today = self._clock.now().date()
        over = [
            name
            for name in await self._indices.names()
            if (day := day_of(name)) is not None and self._retention.is_over(day, today)
        ]
        for name in over:
            await self._indices.drop(name)
            logger.info("deleted %s: it is older than %d days", name, self._retention.days)
        return over
