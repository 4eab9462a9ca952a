"""Answers of language models for the dialects over HTTP, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tidemill.inference.v1.inference_service_pb2 import (
    GenerateRequest,
    GenerateResponse,
    StreamGenerateRequest,
    StreamGenerateResponse,
)
from tidemill.inference.v1.model_pb2 import Usage

from gateway.http.calls import unless_gone, version_headers, watch_disconnect
from gateway.http.errors import CODE_KEY, unexpected
from gateway.plane import DataPlane
from services.kit.errors import InternalError, TidemillError

logger = logging.getLogger(__name__)

# Proxies close an idle connection, the strictest ones after 30 s.
_KEEP_ALIVE_S = 10.0
_KEEP_ALIVE = b": waiting\n\n"

_Write = Callable[[bytes], Awaitable[None]]


class Events(Protocol):
    """Writes the answers to one request as events of a dialect; answers are counted from 0."""

    def begin(self, index: int, first: StreamGenerateResponse) -> Iterable[bytes]:
        """The beginning of an answer. Answer 0 begins first, and names the whole stream."""
        ...

    def piece(self, index: int, piece: StreamGenerateResponse) -> Iterable[bytes]:
        """A piece of an answer, the first and the last one included."""
        ...

    def finish(self, index: int, last: StreamGenerateResponse) -> Iterable[bytes]:
        """The end of an answer, after its last piece."""
        ...

    def end(self, usages: Sequence[Usage]) -> Iterable[bytes]:
        """The end of the stream; the usage of each answer."""
        ...

    def fail(self, error: TidemillError) -> Iterable[bytes]:
        """The end of a stream that failed."""
        ...


async def whole(
    plane: DataPlane, request: Request, asked: Sequence[GenerateRequest], user: str, each: int = 1
) -> list[GenerateResponse]:
    """All answers to one HTTP request, by one version. If one fails or the caller hangs up, the others end, too.

    Args:
        plane: answers.
        request: the HTTP request.
        asked: the answers that are wanted, prompt by prompt.
        user: for whom they are.
        each: number of answers to each prompt.

    Raises:
        ClientGone: the caller hung up.
        TidemillError: an answer failed.
    """
    gone = watch_disconnect(request)
    try:
        return await unless_gone(_all(plane, asked, user, each), gone)
    finally:
        gone.cancel()


async def _all(plane: DataPlane, asked: Sequence[GenerateRequest], user: str, each: int) -> list[GenerateResponse]:
    choice = plane.answers.choose(asked[0], user)
    try:
        async with asyncio.TaskGroup() as group:
            answers = [
                group.create_task(plane.answers.generate(item, choice=choice, again=at % each > 0))
                for at, item in enumerate(asked)
            ]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [answer.result() for answer in answers]


async def streamed(
    plane: DataPlane,
    request: Request,
    asked: Sequence[StreamGenerateRequest],
    user: str,
    events: Events,
    each: int = 1,
) -> Response:
    """All answers to one HTTP request, by one version, as a stream of events. Arguments as `whole`.

    It waits for the first piece, so that errors in a request still determine the HTTP status. If the first piece takes
    long, the stream begins with comments, and later errors become error events.

    Raises:
        ClientGone: the caller hung up before the first piece.
        TidemillError: the answer failed before its first piece.
    """
    choice = plane.answers.choose(asked[0], user)
    gone = watch_disconnect(request)
    answers = [
        _Pieces(plane.answers.stream(item, choice, again=at % each > 0), choice.asked.model)
        for at, item in enumerate(asked)
    ]
    try:
        await unless_gone(answers[0].wait(), gone)
    except BaseException:
        gone.cancel()
        await _close(answers)
        raise
    first = answers[0].first
    version, role = (first.model_version, first.role) if first else (choice.version.name, choice.version.role)
    return _EventStream(answers, gone, events, version_headers(version, role))


class _Pieces:
    """The pieces of an answer, with comments to keep the connection open while the next one takes long."""

    def __init__(self, upstream: AsyncGenerator[StreamGenerateResponse, None], model: str) -> None:
        self._upstream, self.model = upstream, model
        self._reading = self._read()
        self._is_first = True

    def _read(self) -> asyncio.Task[StreamGenerateResponse | None]:
        async def read() -> StreamGenerateResponse | None:
            return await anext(self._upstream, None)

        return asyncio.create_task(read())

    async def wait(self) -> bool:
        """Waits a while for the next piece; False if it has not arrived.

        Raises:
            InternalError: the answer ended before its first piece.
        """
        done, _ = await asyncio.wait({self._reading}, timeout=_KEEP_ALIVE_S)
        if done and self._reading.result() is None and self._is_first:
            raise InternalError(f"The model {self.model} gave no answer.", reason="EMPTY_ANSWER")
        return bool(done)

    @property
    def first(self) -> StreamGenerateResponse | None:
        """The first piece, if it has arrived and was not taken."""
        return self._reading.result() if self._is_first and self._reading.done() else None

    async def next(self, write: _Write) -> StreamGenerateResponse | None:
        """The next piece, or None at the end; until it arrives comments keep the connection open."""
        while not await self.wait():
            await write(_KEEP_ALIVE)
        piece = self._reading.result()
        if piece is not None:
            self._is_first = False
            self._reading = self._read()
        return piece

    def cancel(self) -> None:
        """Makes a reader that waits raise CancelledError."""
        self._reading.cancel()

    async def close(self) -> None:
        """Ends the answer, in Triton too."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._upstream.aclose()


async def _close(answers: Sequence[_Pieces]) -> None:
    await asyncio.gather(*(pieces.close() for pieces in answers))


class _EventStream(Response):
    """Sends the pieces of answers as they arrive; if the client disconnects, generation stops.

    Server-sent events: https://html.spec.whatwg.org/#server-sent-events.
    """

    media_type = "text/event-stream"

    def __init__(
        self, answers: Sequence[_Pieces], gone: asyncio.Task[None], events: Events, headers: Mapping[str, str]
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._answers = answers
        self._begun = asyncio.Event()  # the first answer, which names the whole stream
        self._gone = gone
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the whole stream."""

        async def send_on(data: bytes, more: bool) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async def write(data: bytes) -> None:
            await send_on(data, more=True)

        def hung_up(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                for pieces in self._answers:
                    pieces.cancel()

        self._gone.add_done_callback(hung_up)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            usages = await self._write_answers(write)
            await send_on(b"".join(self._events.end(usages)), more=False)
        except asyncio.CancelledError:
            if not self._gone.done():
                raise
            scope[CODE_KEY] = "CANCELLED"
        except TidemillError as error:
            scope[CODE_KEY] = error.code
            await send_on(b"".join(self._events.fail(error)), more=False)
        except Exception as error:
            logger.exception("an answer of %s failed unexpectedly", self._answers[0].model)
            failure = unexpected(error)
            scope[CODE_KEY] = failure.code
            await send_on(b"".join(self._events.fail(failure)), more=False)
        finally:
            self._gone.cancel()
            await _close(self._answers)

    async def _write_answers(self, write: _Write) -> list[Usage]:
        if len(self._answers) == 1:
            return [await self._write_answer(write, 0)]
        try:
            # Each event is written at once, so those of several answers do not mix.
            async with asyncio.TaskGroup() as group:
                writing = [group.create_task(self._write_answer(write, at)) for at in range(len(self._answers))]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self._gone.done():
            raise asyncio.CancelledError
        return [answer.result() for answer in writing]

    async def _write_answer(self, write: _Write, index: int) -> Usage:
        """Writes an answer; returns its usage."""
        pieces, events = self._answers[index], self._events
        piece = await pieces.next(write)
        if piece is None:
            raise InternalError(f"The model {pieces.model} gave no answer.", reason="EMPTY_ANSWER")
        if index:
            await self._begun.wait()
        data = b"".join(events.begin(index, piece))
        self._begun.set()
        last = piece
        while piece is not None:
            last = piece
            if data := data + b"".join(events.piece(index, piece)):
                await write(data)
            data = b""
            piece = await pieces.next(write)
        if not last.finish_reason:
            raise InternalError("The answer ended before it was complete.", reason="INCOMPLETE_ANSWER")
        if data := b"".join(events.finish(index, last)):
            await write(data)
        return last.usage
