"""Keeps a turn running for every cycle that has not ended."""

from __future__ import annotations

import asyncio
import logging

from services.kit.errors import UnavailableError
from services.pipeline.app.turn import Parts, Turn
from services.pipeline.domain.cycle import Cycle

logger = logging.getLogger(__name__)

_AGAIN_S = 30.0


class Driver:
    """Lives in one event loop. `run` takes up what an earlier process left; `start` adds a cycle."""

    def __init__(self, parts: Parts) -> None:
        self._store, self._parts = parts.cycles, parts
        self._new: asyncio.Queue[str] = asyncio.Queue()
        self._cancels: dict[str, asyncio.Event] = {}

    def start(self, name: str) -> None:
        """Drives a new cycle."""
        self._new.put_nowait(name)

    def cancel(self, name: str) -> None:
        """Tells a cycle's turn to stop."""
        if name in self._cancels:
            self._cancels[name].set()

    async def run(self) -> None:
        """Drives cycles until it is cancelled; a cycle whose turn is cut off goes on in the next process."""
        for cycle in await asyncio.to_thread(self._store.unfinished):
            logger.info("%s goes on at %s", cycle.name, cycle.current.name if cycle.current else "its end")
            self.start(cycle.name)
        async with asyncio.TaskGroup() as turns:
            while True:
                name = await self._new.get()
                if name not in self._cancels:
                    self._cancels[name] = asyncio.Event()
                    turns.create_task(self._drive(name), name=name)

    async def _drive(self, name: str) -> None:
        try:
            cycle = await self._read(name)
            if cycle is None or (cycle.state.final and cycle.announced):
                return
            if cycle.cancel_requested:
                self._cancels[name].set()
            await Turn(self._parts, cycle).run(self._cancels[name])
        except Exception:
            # A cycle that cannot even be stored must not stop those of other loops, which share this process.
            logger.exception("%s cannot go on; again in %.0f s", name, _AGAIN_S)
            await asyncio.sleep(_AGAIN_S)
            self.start(name)
        finally:
            del self._cancels[name]

    async def _read(self, name: str) -> Cycle | None:
        while True:
            try:
                return await asyncio.to_thread(self._store.get, name)
            except UnavailableError as error:
                logger.warning("%s waits for its database: %s", name, error.message)
                await asyncio.sleep(1.0)
