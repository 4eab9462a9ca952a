"""What only a store outside this process can meet."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.serving.adapters import answer_valkey
from services.serving.adapters.answer_codec import decode, encode
from services.serving.adapters.answer_valkey import ValkeyAnswers
from services.serving.app.answer_cache import CachingServer
from services.serving.domain.answer import FinishReason, Piece, Prompt, Sampling, Scored
from tests.contract.answers.conftest import TTL_S, Server
from tests.unit.serving.test_answer_cache import VERSION
from tests.unit.serving.test_answer_cache import Server as Model
from tests.waiting import eventually_is

KEY = b"1" * 32
VALUE = Scored(3, 1, (0.1, 0.9))


@asynccontextmanager
async def opened(url: str, ttl_s: float = TTL_S) -> AsyncIterator[tuple[ValkeyAnswers, Counter[str]]]:
    """A store, and how often it could not use its server."""
    errors = Counter[str]()
    store = ValkeyAnswers(url, ttl_s, lambda: errors.update(["error"]))
    try:
        yield store, errors
    finally:
        await store.close()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_valkey, "_PAUSE_S", 0.0)


async def test_processes_share_answers_and_tenants_do_not(running: Server) -> None:
    running.client.flushall()
    async with opened(running.url) as (one, errors), opened(running.url) as (other, _):
        model, counts, tenant = Model(), Counter[str](), "t1"

        def server(store: ValkeyAnswers) -> CachingServer:
            return CachingServer(model, store, lambda: tenant, lambda result: counts.update([result]))

        first, second = server(one), server(other)
        rows = await first.classify(VERSION, ["a", "bb"])
        assert await second.classify(VERSION, ["bb", "a"]) == list(reversed(rows))
        assert (model.asked, counts) == (["a", "bb"], {"miss": 2, "hit": 2})
        for caching in (first, second):
            async with aclosing(caching.generate(VERSION, Prompt(text="w"), Sampling(max_tokens=4))) as pieces:
                assert "".join([piece.text async for piece in pieces]) == "one two"
        assert model.asked == ["a", "bb", "w"]
        tenant = "t2"
        await second.classify(VERSION, ["a"])
        assert model.asked == ["a", "bb", "w", "a"]
        assert not errors
    # What stands there: no text that was asked, and a time at which each goes.
    for key in cast("list[bytes]", running.client.keys()):
        assert key.startswith(b"tidemill:answers:")
        assert 0 < running.client.ttl(key) <= TTL_S


async def test_an_answer_that_a_caller_did_not_wait_for_is_kept(running: Server) -> None:
    running.client.flushall()
    async with opened(running.url) as (store, _):
        model = Model()
        caching = CachingServer(model, store, lambda: "t", lambda _: None)
        for _ in range(2):
            async with aclosing(caching.generate(VERSION, Prompt(text="w"), Sampling(max_tokens=4))) as pieces:
                async for piece in pieces:
                    if piece.finish_reason is FinishReason.STOP:
                        break
        assert model.asked == ["w"]


async def test_a_server_that_is_away_is_as_none_and_is_used_again(
    own_server: Server, no_pause: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(own_server.url) as (store, errors):
        caching = CachingServer(Model(), store, lambda: "t", lambda _: None)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert len(await caching.classify(VERSION, ["a"])) == 1
        assert errors["error"] == 6
        assert len([record for record in caplog.records if "keeps nothing" in record.message]) == 1
        own_server.start()
        await store.put({KEY: VALUE})
        assert list(await store.get([KEY])) == [VALUE]
        own_server.stop()
        assert list(await store.get([KEY])) == [None]
        own_server.start()
        await store.put({KEY: VALUE})
        assert list(await store.get([KEY])) == [VALUE]


async def test_a_server_that_does_not_answer_is_not_waited_for(own_server: Server) -> None:
    own_server.start()
    async with opened(own_server.url) as (store, errors):
        await store.put({KEY: VALUE})
        own_server.client.client_pause(600_000, all=True)
        assert list(await store.get([KEY])) == [None]
        # And after that not even asked, for a while.
        assert list(await store.get([KEY])) == [None]
        assert errors["error"] == 2


@pytest.mark.parametrize("options", [("--maxmemory", "0"), ("--maxmemory-policy", "noeviction")])
async def test_a_server_without_a_bound_keeps_nothing(
    own_server: Server, options: tuple[str, ...], no_pause: None, caplog: pytest.LogCaptureFixture
) -> None:
    own_server.start(*options)
    async with opened(own_server.url) as (store, errors):
        with caplog.at_level(logging.WARNING):
            await store.put({KEY: VALUE})
        assert own_server.client.dbsize() == 0
        assert errors["error"] == 1
        assert "set maxmemory, and maxmemory-policy" in caplog.text
        own_server.client.config_set("maxmemory", "50mb")
        own_server.client.config_set("maxmemory-policy", "allkeys-lru")
        await store.put({KEY: VALUE})
        assert own_server.client.dbsize() == 1


async def test_a_password_is_used_and_a_wrong_one_is_as_no_server(own_server: Server, no_pause: None) -> None:
    own_server.start()
    own_server.client.config_set("requirepass", "secret")
    for password, kept in (("secret", [VALUE]), ("wrong", [None])):
        async with opened(own_server.url.replace("unix://", f"unix://:{password}@")) as (store, errors):
            await store.put({KEY: VALUE})
            assert list(await store.get([KEY])) == kept
            assert bool(errors) == (password == "wrong")


async def test_answers_are_forgotten_after_their_time(running: Server) -> None:
    async with opened(running.url, 0.05) as (store, errors):
        await store.put({KEY: VALUE})
        await eventually_is(lambda: store.get([KEY]), lambda found: list(found) == [None], "the end of an answer")
        assert not errors


async def test_what_another_release_wrote_is_asked_again(running: Server) -> None:
    async with opened(running.url) as (store, errors):
        for data in (b"", b"[]", b'[2,1,0,"scored",[0.5]]', b"\xff", b'[1,1,0,"scored","x"]', b'[1,1,0,"piece",1]'):
            running.client.set(b"tidemill:answers:" + KEY, data)
            assert list(await store.get([KEY])) == [None]
        assert not errors


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(repr).map(str.encode))
def test_any_bytes_are_an_answer_or_none(data: bytes) -> None:
    decode(data)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**31 - 1))
def test_any_text_comes_back(text: str, tokens: int) -> None:
    piece: Any = Piece(text, FinishReason.STOP, tokens, tokens)
    assert decode(encode(piece)) == piece
