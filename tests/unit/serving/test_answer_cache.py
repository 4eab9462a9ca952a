"""The exact cache: what it keeps, for whom, and what it never keeps."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest

from services.kit.errors import InternalError
from services.serving.adapters.answer_memory import AnswerMemory
from services.serving.app.answer_cache import CachingServer
from services.serving.domain.answer import (
    Embedded,
    FinishReason,
    Piece,
    Prompt,
    Recognized,
    Sampling,
    Scored,
    Task,
    Token,
)
from services.serving.domain.route import RoutedVersion
from tests.waiting import eventually

VERSION = RoutedVersion("m", 1, Task.TEXT_CLASSIFICATION, labels=("a", "b"))
GREEDY = Sampling(max_tokens=4)


class Server:
    """Counts what it is asked; holds every answer until `go`, and fails while `fails`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ended = 0
        self.fails = self.cut = False
        self.go = asyncio.Event()
        self.go.set()

    async def recognize(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Recognized]:
        raise NotImplementedError

    async def classify(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Scored]:
        self.asked += texts
        await self.go.wait()
        if self.fails:
            raise InternalError("failed")
        return [Scored(scores=(0.25, float(len(text)))) for text in texts]

    async def embed(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Embedded]:
        self.asked += texts
        return [Embedded(values=array("f", [float(len(text))])) for text in texts]

    async def generate(self, version: RoutedVersion, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        self.asked.append(prompt.text or "")
        try:
            yield Piece("one ", FinishReason.NONE, 3, 1, (Token("one ", -0.5),) if sampling.logprobs else ())
            await self.go.wait()
            if self.fails:
                raise InternalError("failed")
            if not self.cut:
                yield Piece("two", FinishReason.STOP, 3, 2, (Token("two", -1.5),) if sampling.logprobs else ())
        finally:
            self.ended += 1


class Cache:
    def __init__(self, limit: int = 1 << 20) -> None:
        self.server, self.counts, self.tenant = Server(), Counter[str](), "t1"
        self.store = AnswerMemory(limit, 60.0)
        self.caching = CachingServer(
            self.server, self.store, lambda: self.tenant, lambda result: self.counts.update([result])
        )

    async def write(self, text: str, sampling: Sampling = GREEDY) -> str:
        async with aclosing(self.caching.generate(VERSION, Prompt(text=text), sampling)) as pieces:
            return "".join([piece.text async for piece in pieces])


async def test_each_text_is_asked_once_and_answered_in_order() -> None:
    cache = Cache()

    async def scores(*texts: str) -> list[tuple[float, ...]]:
        return [row.scores for row in await cache.caching.classify(VERSION, texts)]

    assert await scores("a", "bb", "a") == [(0.25, 1.0), (0.25, 2.0), (0.25, 1.0)]
    assert await scores("ccc", "bb") == [(0.25, 3.0), (0.25, 2.0)]
    assert cache.server.asked == ["a", "bb", "ccc"]


async def test_log_probabilities_and_schemas_are_kept_apart() -> None:
    cache = Cache()
    for sampling in (GREEDY, replace(GREEDY, logprobs=True), replace(GREEDY, json_schema='{"type":"null"}')):
        for _ in range(2):
            await cache.write("a", sampling)
    assert cache.server.asked == ["a"] * 3
    async with aclosing(cache.caching.generate(VERSION, Prompt(text="a"), replace(GREEDY, logprobs=True))) as pieces:
        (kept,) = [piece async for piece in pieces]
    assert (kept.text, kept.completion_tokens) == ("one two", 2)
    assert [(token.text, token.logprob) for token in kept.tokens] == [("one ", -0.5), ("two", -1.5)]


async def test_tenants_versions_and_loads_are_apart() -> None:
    cache = Cache()
    await cache.caching.classify(VERSION, ["a"])
    cache.tenant = "t2"
    await cache.caching.classify(VERSION, ["a"])
    await cache.caching.classify(replace(VERSION, number=2), ["a"])
    await cache.caching.classify(replace(VERSION, generation=2), ["a"])
    assert cache.server.asked == ["a"] * 4
    await cache.caching.classify(VERSION, ["a"])
    assert cache.server.asked == ["a"] * 4


async def test_what_is_asked_at_once_is_asked_once() -> None:
    cache = Cache()
    cache.server.go.clear()
    asking = [asyncio.create_task(cache.caching.classify(VERSION, ["a"])) for _ in range(5)]
    writing = [asyncio.create_task(cache.write("x")) for _ in range(5)]
    await eventually(lambda: sum(cache.counts.values()) == 10)
    cache.server.go.set()
    assert [[row.scores for row in rows] for rows in await asyncio.gather(*asking)] == [[(0.25, 1.0)]] * 5
    assert await asyncio.gather(*writing) == ["one two"] * 5
    assert cache.server.asked == ["a", "x"]
    assert cache.counts == {"miss": 2, "joined": 8}


async def test_an_error_is_neither_kept_nor_shared() -> None:
    cache = Cache()
    cache.server.fails = True
    cache.server.go.clear()
    first, second = (asyncio.create_task(cache.caching.classify(VERSION, ["a"])) for _ in range(2))
    await eventually(lambda: sum(cache.counts.values()) == 2)
    cache.server.go.set()
    found = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(each) for each in found] == [InternalError, InternalError]
    assert cache.server.asked == ["a", "a"]
    with pytest.raises(InternalError):
        await cache.write("x")
    cache.server.fails = False
    assert await cache.write("x") == "one two"
    assert cache.store.size < 1000


async def test_an_answer_without_its_end_is_not_kept() -> None:
    cache = Cache()
    cache.server.cut = True
    assert await cache.write("x") == "one "
    assert await cache.write("x") == "one "
    assert cache.server.asked == ["x", "x"]


async def test_builds_of_one_name_are_apart() -> None:
    cache = Cache()
    for digest in ("sha256:1", "sha256:2", "sha256:1"):
        await cache.caching.classify(replace(VERSION, digest=digest), ["a"])
    assert cache.server.asked == ["a", "a"]


async def test_sampled_answers_are_never_kept() -> None:
    cache = Cache()
    for _ in range(2):
        assert await cache.write("x", Sampling(temperature=0.5)) == "one two"
    assert cache.server.asked == ["x", "x"]
    assert not cache.counts


async def test_a_kept_answer_has_the_whole_text_and_its_counts() -> None:
    cache = Cache()
    await cache.write("x")
    async with aclosing(cache.caching.generate(VERSION, Prompt(text="x"), GREEDY)) as pieces:
        assert [piece async for piece in pieces] == [Piece("one two", FinishReason.STOP, 3, 2)]


async def test_a_caller_who_hangs_up_ends_the_question_only_if_no_other_waits() -> None:
    cache = Cache()
    cache.server.go.clear()
    first = asyncio.create_task(cache.write("x"))
    await eventually(lambda: cache.server.asked)
    second = asyncio.create_task(cache.write("x"))
    await eventually(lambda: cache.counts["joined"])
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert cache.server.ended == 0
    cache.server.go.set()
    assert await second == "one two"

    cache.server.go.clear()
    alone = asyncio.create_task(cache.write("y"))
    await eventually(lambda: cache.server.asked[-1] == "y")
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)
    await eventually(lambda: cache.server.ended == 2)
    cache.server.go.set()
    assert await cache.write("y") == "one two"


async def test_the_memory_is_bounded_in_bytes_and_time() -> None:
    now = 0.0
    # Each score takes 32 bytes, and each answer 400.
    memory = AnswerMemory(3 * 432, 10.0, lambda: now)
    row = Scored(scores=(1.0,))

    async def kept(names: str) -> str:
        found = await memory.get([name.encode() for name in names])
        return "".join(name for name, value in zip(names, found, strict=True) if value == row)

    for name in (b"a", b"b", b"c", b"d"):
        await memory.put({name: row})
    assert await kept("abcd") == "bcd"
    assert await kept("b") == "b"
    await memory.put({b"e": row})  # the least recently used goes
    assert await kept("bcde") == "bde"
    await memory.put({b"f": Scored(scores=(1.0,) * 28)})
    assert await memory.get([b"f"]) == [Scored(scores=(1.0,) * 28)]
    assert memory.size == 1296
    await memory.put({b"g": Scored(scores=(1.0,) * 29)})
    assert await memory.get([b"g", b"f"]) == [None, Scored(scores=(1.0,) * 28)]
    now = 10.0
    assert await kept("f") == ""
    assert memory.size == 0
