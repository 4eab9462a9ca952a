"""An exact cache in front of a server: what has the same answer each time is asked once.

These are labels and embeddings of a text, and generations whose most probable tokens are taken (temperature 0). Only
whole answers are kept; an error is never kept or shared. A caller who asks while the same question is being answered
waits for that answer (single flight); it continues as long as one caller waits. It lives in one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any, Generic, Protocol, TypeVar

from services.serving.app.ports import InferenceServer
from services.serving.domain.answer import Embedded, FinishReason, Piece, Prompt, Recognized, Sampling, Scored, Token
from services.serving.domain.route import RoutedVersion

T = TypeVar("T")
R = TypeVar("R", Scored, Embedded)

_Ask = Callable[[Sequence[str]], Awaitable[Sequence[T]]]


Kept = Scored | Embedded | Piece
"""An answer that is kept."""


class AnswerStore(Protocol):
    """Keeps answers by key for a while, as many as fit. Values must not be changed.

    A store that cannot be reached has nothing, and keeps nothing: it raises no errors.
    """

    async def get(self, keys: Sequence[bytes]) -> Sequence[Kept | None]:
        """The value of each key, or None."""
        ...

    async def put(self, found: Mapping[bytes, Kept]) -> None:
        """Keeps values."""
        ...


class CachingServer:
    """Implements `services.serving.app.ports.InferenceServer`."""

    def __init__(
        self,
        server: InferenceServer,
        store: AnswerStore,
        tenant: Callable[[], str],
        count: Callable[[str], None],
    ) -> None:
        """Args:
        server: is asked for what is not kept.
        store: keeps answers.
        tenant: of the present caller; no tenant gets an answer that another asked for.
        count: called with `hit`, `miss` or `joined` for each question.
        """
        self._server = server
        self.store = store
        self._tenant = tenant
        self._count = count
        self._flights: dict[bytes, _Flight[Any]] = {}

    async def recognize(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Recognized]:
        """See the port; spans are not kept."""
        return await self._server.recognize(version, texts)

    async def classify(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Scored]:
        """See the port."""
        ask = functools.partial(self._server.classify, version)
        return await self._each(version, texts, "classify", ask, Scored)

    async def embed(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Embedded]:
        """See the port."""
        ask = functools.partial(self._server.embed, version)
        return await self._each(version, texts, "embed", ask, Embedded)

    async def _each(
        self, version: RoutedVersion, texts: Sequence[str], what: str, ask: _Ask[R], kind: type[R]
    ) -> Sequence[R]:
        """The answer for each text: kept, being answered, or asked for now; `kind`: what an answer is."""

        async def asked(missing: dict[bytes, str]) -> dict[bytes, R]:
            found = dict(zip(missing, await ask(list(missing.values())), strict=True))
            await self.store.put(found)
            return found

        keys = [self._key(version, what, text) for text in texts]
        found = dict(zip(keys, await self.store.get(keys), strict=True))
        rows: dict[bytes, R] = {key: kept for key, kept in found.items() if isinstance(kept, kind)}
        hits = len(rows)
        joined = {key: flight for key in keys if key not in rows and (flight := self._flights.get(key)) is not None}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in rows and key not in joined}
        for result, number in (("hit", hits), ("joined", len(joined)), ("miss", len(missing))):
            for _ in range(number):
                self._count(result)
        if missing:
            rows |= await self._fly(tuple(missing), asked(missing)).join()
        for key, flight in joined.items():
            # What failed for another, or was asked for with other texts, says nothing about this text.
            with contextlib.suppress(Exception):
                rows[key] = (await flight.join())[key]
        if left := {key: text for key, text in zip(keys, texts, strict=True) if key not in rows}:
            rows |= await asked(left)
        return [rows[key] for key in keys]

    async def generate(self, version: RoutedVersion, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        """See the port. A kept answer is one piece."""
        if sampling.temperature:
            async with aclosing(self._server.generate(version, prompt, sampling)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        key = self._key(version, "generate", json.dumps([asdict(prompt), asdict(sampling)], ensure_ascii=False))
        [found] = await self.store.get([key])
        if isinstance(found, Piece):
            self._count("hit")
            yield found
            return
        kept: Piece | None = None
        flight = self._flights.get(key)
        if flight is not None:
            self._count("joined")
            # As above: only a whole answer is shared, so nothing was returned yet that asking again would repeat.
            with contextlib.suppress(Exception):
                kept = await flight.join()
            if kept is not None:
                yield kept
                return
            async with aclosing(self._server.generate(version, prompt, sampling)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        self._count("miss")
        arrived: asyncio.Queue[Piece | None] = asyncio.Queue()
        flight = self._fly((key,), self._generated(version, prompt, sampling, key, arrived))
        with flight.waited_for():
            while (next_piece := await arrived.get()) is not None:
                yield next_piece
            await flight.task  # raises what ended it

    async def _generated(
        self,
        version: RoutedVersion,
        prompt: Prompt,
        sampling: Sampling,
        key: bytes,
        arrived: asyncio.Queue[Piece | None],
    ) -> Piece | None:
        """The whole answer as one piece; None if it ended without its last."""
        texts: list[str] = []
        tokens: list[Token] = []
        try:
            async with aclosing(self._server.generate(version, prompt, sampling)) as pieces:
                async for piece in pieces:
                    texts.append(piece.text)
                    tokens += piece.tokens
                    if piece.finish_reason is FinishReason.NONE:
                        arrived.put_nowait(piece)
                        continue
                    whole = replace(piece, text="".join(texts), tokens=tuple(tokens))
                    # Before its last piece is passed on: then the caller may be gone, and this ended.
                    await self.store.put({key: whole})
                    arrived.put_nowait(piece)
                    return whole
            return None
        finally:
            arrived.put_nowait(None)

    def _fly(self, keys: tuple[bytes, ...], work: Coroutine[Any, Any, T]) -> _Flight[T]:
        def forget() -> None:
            for key in keys:
                if self._flights.get(key) is flight:
                    del self._flights[key]

        def landed(task: asyncio.Future[T]) -> None:
            forget()
            if not task.cancelled():
                task.exception()  # its caller may be gone

        flight = _Flight(asyncio.ensure_future(work), forget)
        for key in keys:
            self._flights[key] = flight
        flight.task.add_done_callback(landed)
        return flight

    def _key(self, version: RoutedVersion, what: str, text: str) -> bytes:
        """Of a question. Meshes that share a store and have versions of one name differ by the digest.

        A version that was loaded again has another generation, and is asked again.
        """
        version_parts = (version.name, version.digest, str(version.generation), "\t".join(version.labels))
        parts = (self._tenant(), *version_parts, what, text)
        digest = hashlib.sha256()
        for part in parts:
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.digest()


class _Flight(Generic[T]):
    """A question that is being answered; it is cancelled when no caller waits for it any more."""

    def __init__(self, task: asyncio.Future[T], forget: Callable[[], None]) -> None:
        self.task = task
        self._forget = forget
        self._waiting = 0

    @contextlib.contextmanager
    def waited_for(self) -> Iterator[None]:
        """Someone waits for the length of the block."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting and not self.task.done():
                self._forget()  # at once: a caller who comes now must not join what is about to end
                self.task.cancel()

    async def join(self) -> T:
        """Its result."""
        with self.waited_for():
            return await asyncio.shield(self.task)
