"""Streams to Triton that no one cancels.

Triton 2.51 can crash, with every model in it, when a call is cancelled at the moment at which it ends (issues 7368 and
8034 of triton-inference-server/server, corrected in later releases). So where a caller leaves, the model is asked to
stop by a request of its own, and what still comes is read and dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from services.kit.grpc.request_streams import RequestStream
from services.serving.adapters.triton_tensors import once

logger = logging.getLogger(__name__)

_AHEAD = 64
"""Responses that may be read before the caller takes them; Triton keeps the others."""
_DEPARTURE_S = 10.0
# For a model that does not know departures, and for one that hangs: then its stream is cancelled after all.
_PATIENCE_S = 30.0
_END = object()

_tasks: set[asyncio.Task[None]] = set()


class TritonStream:
    """The responses of one `ModelStreamInfer`, each once; call `leave` when no more are wanted."""

    def __init__(self, stub: Any, call: RequestStream, departures: Iterable[pb.ModelInferRequest]) -> None:
        """Args:
        stub: of Triton.
        call: the stream.
        departures: what asks the model to stop, by `departure_of`; read when the caller leaves.
        """
        self._stub, self._call, self._departures = stub, call, departures
        self._responses: asyncio.Queue[Any] = asyncio.Queue()
        # Bounds the responses, and never the end.
        self._room = asyncio.Semaphore(_AHEAD)
        self._error: BaseException | None = None
        self._left = False
        # Not the caller's task: where that is cancelled, gRPC cancels what it waits for.
        self._reading = _keep(asyncio.create_task(self._read()))

    def __aiter__(self) -> TritonStream:
        return self

    async def __anext__(self) -> Any:
        """The next response.

        Raises:
            AioRpcError: as Triton ended the stream.
            CancelledError: it was cancelled, by `cancel` or because the caller left.
        """
        response = await self._responses.get()
        if response is not _END:
            self._room.release()
            return response
        self._responses.put_nowait(_END)
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def done(self) -> bool:
        """Whether Triton has ended it."""
        return self._reading.done()

    def when_ended(self, do: Callable[[], object]) -> None:
        """Calls `do` once Triton has ended it."""
        self._reading.add_done_callback(lambda _: do())

    def cancel(self) -> None:
        """Ends the call, for a Triton or a model that is dead."""
        self._call.cancel()

    def leave(self) -> None:
        """Takes no more; the model stops, if it has not ended."""
        if self._left or self._reading.done():
            return
        self._left = True
        self._room.release()
        _keep(asyncio.create_task(self._depart()))

    async def _read(self) -> None:
        try:
            async for response in self._call:
                if not self._left:
                    await self._room.acquire()
                    self._responses.put_nowait(response)
        except (Exception, asyncio.CancelledError) as error:
            self._error = error
        self._responses.put_nowait(_END)

    async def _depart(self) -> None:
        for departure in tuple(self._departures):
            try:
                async for _ in self._stub.ModelStreamInfer(once(departure), timeout=_DEPARTURE_S):
                    pass
            except grpc.aio.AioRpcError as error:
                logger.warning("a model was not asked to stop: %s", error.details())
        await asyncio.wait((self._reading,), timeout=_PATIENCE_S)
        if not self._reading.done():
            self._call.cancel()


async def ended(call: Any) -> None:
    """Waits for a call with one response; where the caller leaves, the call continues to its end."""
    done = asyncio.get_running_loop().create_future()

    def end(_call: Any) -> None:
        if not done.done():
            done.set_result(None)

    call.add_done_callback(end)
    await done


def _keep(task: asyncio.Task[None]) -> asyncio.Task[None]:
    # The event loop itself holds tasks weakly only.
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task
