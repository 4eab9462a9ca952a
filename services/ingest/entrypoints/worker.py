"""Pulls imports beside the server, a few at a time, each within the trace of its request."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from opentelemetry import trace

from services.ingest.app.intake import Intake
from services.ingest.app.interrupt import Interrupt
from services.ingest.app.ports import ImportStore
from services.ingest.app.runner import ImportRunner
from services.ingest.domain.source_import import Import
from services.kit.loops import step_forever
from services.kit.telemetry import schema
from services.kit.telemetry.context import trace_context

_FORGET_EVERY_S = 600.0
_LEFT_FOR = timedelta(seconds=60)


class ImportWorker:
    """Runs pending imports; create it once, `run` it once, `close` it at the end."""

    def __init__(self, store: ImportStore, runner: ImportRunner, intake: Intake, at_once: int) -> None:
        self._store = store
        self._runner = runner
        self._intake = intake
        self._at_once = at_once
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="import")
        self._in_hand: dict[str, asyncio.Future[None]] = {}
        self._origins: dict[str, str] = {}
        self._left: set[str] = set()
        self._interrupts: dict[str, Interrupt] = {}
        self._forget_at = 0.0
        self._tracer = trace.get_tracer(__name__)

    async def run(self) -> None:
        """Looks for work until cancelled; waits longer while a dependency is unavailable."""
        await step_forever(self._step, "importing")

    async def _step(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._runner.announce)
        await self._take_up(loop)
        if loop.time() >= self._forget_at:
            await asyncio.to_thread(self._intake.forget_old)
            self._forget_at = loop.time() + _FORGET_EVERY_S

    async def _take_up(self, loop: asyncio.AbstractEventLoop) -> None:
        ended = [name for name, future in self._in_hand.items() if future.done()]
        for name in ended:
            # An import stores its own failures; anything else it raises is a bug and ends the process.
            self._interrupts.pop(name)
            self._origins.pop(name)
            self._in_hand.pop(name).result()
        running = await asyncio.to_thread(self._store.running_imports)
        # Another process has begun to pull it and owns it as long as it shows signs of life.
        self._left = {item.name for item in running if item.name in ended or item.name in self._left}
        quiet = datetime.now(UTC) - _LEFT_FOR
        # Whichever process cancelled it: a hanging read ends here and makes room for the next import.
        for name in self._interrupts.keys() - {item.name for item in running}:
            self._interrupts[name].set()
        # One after another, since each is compared with the previous one; a cancelled one must end first, too.
        busy = set(self._origins.values())
        for item in running:
            if item.name in self._in_hand or item.spec.origin in busy:
                continue
            busy.add(item.spec.origin)
            if item.name in self._left and item.update_time > quiet:
                continue
            if len(self._in_hand) < self._at_once:
                self._origins[item.name] = item.spec.origin
                interrupt = self._interrupts[item.name] = Interrupt()
                self._in_hand[item.name] = loop.run_in_executor(self._pool, self._pull, item, interrupt)

    @property
    def origins(self) -> frozenset[str]:
        """The origins that are being read."""
        return frozenset(self._origins.values())

    def _pull(self, item: Import, interrupt: Interrupt) -> None:
        parent = trace_context(item.traceparent)
        with self._tracer.start_as_current_span("import", context=parent, attributes={schema.IMPORT: item.name}):
            self._runner.run(item, interrupt)

    def close(self) -> None:
        """Ends the running imports after their current batches; the next process resumes them."""
        self._runner.stop()
        for interrupt in self._interrupts.values():
            interrupt.set()
        self._pool.shutdown(wait=True)
