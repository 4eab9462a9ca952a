"""Runs every cycle that has not ended, one `CycleRunner` each."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from services.kit.retrying import call_with_retries_async
from services.kit.threads import in_thread
from services.pipeline.app.cycle_runner import CycleDependencies, CycleRunner
from services.pipeline.domain.cycle import Cycle

logger = logging.getLogger(__name__)

_RETRY_S = 30.0


class CycleScheduler:
    """Belongs to one event loop. `run` resumes what an earlier process left; `start` adds a cycle."""

    def __init__(self, dependencies: CycleDependencies) -> None:
        self._store, self._deps = dependencies.cycles, dependencies
        self._new: asyncio.Queue[str] = asyncio.Queue()
        self._cancels: dict[str, asyncio.Event] = {}

    def start(self, name: str) -> None:
        """Schedules a new cycle."""
        self._new.put_nowait(name)

    def cancel(self, name: str) -> None:
        """Asks the runner of a cycle to stop it."""
        if name in self._cancels:
            self._cancels[name].set()

    async def run(self) -> None:
        """Runs cycles until it is cancelled; the next process resumes those that were interrupted."""
        for cycle in await asyncio.to_thread(self._store.unfinished):
            logger.info("%s resumes at %s", cycle.name, cycle.current.name if cycle.current else "its end")
            self.start(cycle.name)
        async with asyncio.TaskGroup() as runners:
            while True:
                name = await self._new.get()
                if name not in self._cancels:
                    self._cancels[name] = asyncio.Event()
                    runners.create_task(self._run_cycle(name), name=name)

    async def _run_cycle(self, name: str) -> None:
        try:
            cycle = await self._read(name)
            if cycle is None or (cycle.state.final and cycle.announced):
                return
            if cycle.cancel_requested:
                self._cancels[name].set()
            await CycleRunner(self._deps, cycle).run(self._cancels[name])
        except Exception:
            # A cycle that cannot be stored must not stop the cycles of other pipelines, which share this process.
            logger.exception("%s failed to run; retrying in %.0f s", name, _RETRY_S)
            await asyncio.sleep(_RETRY_S)
            self.start(name)
        finally:
            del self._cancels[name]

    async def _read(self, name: str) -> Cycle | None:
        return await call_with_retries_async(in_thread(partial(self._store.get, name)), name)
