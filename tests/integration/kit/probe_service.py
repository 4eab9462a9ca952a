"""A service of nothing but the kit, as a process: `python probe_service.py MODE`; settings come from the environment.

It prints a word for each thing that happens, in order. Modes: `serve`; `waits` for a part that never comes; `breaks`
before it serves; `fails` in a task soon after its start.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1 import pipeline_service_pb2_grpc as stubs

from services.kit.config import ServiceSettings, load_settings
from services.kit.runtime.service import Service, run_service
from services.kit.telemetry.metrics import RequestMetrics


def say(word: str) -> None:
    """Prints a word for the test."""
    print(word, flush=True)  # noqa: T201 - what the test reads


class Servicer(stubs.PipelineServiceServicer):
    """Quick, slow and endless calls."""

    async def GetCycle(self, request: Any, context: Any) -> pb.GetCycleResponse:  # noqa: N802
        return pb.GetCycleResponse()

    async def CancelCycle(self, request: Any, context: Any) -> pb.CancelCycleResponse:  # noqa: N802
        say("call began")
        await asyncio.sleep(1.5)
        say("call ended")
        return pb.CancelCycleResponse()

    async def WatchCycle(self, request: Any, context: Any) -> AsyncIterator[pb.WatchCycleResponse]:  # noqa: N802
        while True:
            yield pb.WatchCycleResponse()
            await asyncio.sleep(0.01)


class SlowConsumer:
    """Works on batches of half a second, one after the other."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        say("consumer stopped")

    def _run(self) -> None:
        while not self._stop.is_set():
            say("batch began")
            time.sleep(0.5)
            say("batch committed")


async def _task() -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        say("task ended")


async def _failing_task() -> None:
    await asyncio.sleep(0.2)
    raise RuntimeError("a defect")


def _broken_close() -> None:
    say("closer one")
    raise RuntimeError("cannot close")


async def _close() -> None:
    say("closer two")


async def _build(mode: str) -> Service:
    if mode == "waits":
        say("builds")
        await asyncio.to_thread(time.sleep, 3600)
    if mode == "breaks":
        raise RuntimeError("a defect")

    def register(server: Any) -> list[str]:
        stubs.add_PipelineServiceServicer_to_server(Servicer(), server)  # type: ignore[abstract]
        return ["tidemill.pipeline.v1.PipelineService"]

    return Service(
        register=register,
        consumers=[SlowConsumer()],
        tasks=[_task, *([_failing_task] if mode == "fails" else [])],
        closers=[_broken_close, _close],
    )


def main() -> None:
    """Runs it until it is asked to stop."""
    settings = load_settings(ServiceSettings)

    async def build(_: RequestMetrics) -> Service:
        return await _build(sys.argv[1])

    run_service("probe", settings, build)


if __name__ == "__main__":
    main()
