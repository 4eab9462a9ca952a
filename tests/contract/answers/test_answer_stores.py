"""What every store of answers does, whatever keeps them."""

from __future__ import annotations

from array import array

import pytest

from services.serving.app.answer_cache import AnswerStore, Kept
from services.serving.domain.answer import Embedded, FinishReason, Piece, Scored, Token

ONE, TWO = b"1" * 32, b"2" * 32
VALUES: list[Kept] = [
    Scored(3, 1, (0.1, 0.9)),
    Embedded(3, 0, array("f", [0.1, -0.25, 3e-9])),
    Piece("房间 \x00 很好\n", FinishReason.STOP, 7, 3, (Token("房", -0.5), Token("�", -1e-7)), 2),
    Piece("", FinishReason.LENGTH, 7, 0),
]


@pytest.mark.parametrize("value", VALUES)
async def test_what_was_put_comes_back_as_it_was(store: AnswerStore, value: Kept) -> None:
    assert list(await store.get([ONE, TWO])) == [None, None]
    await store.put({ONE: value})
    assert list(await store.get([TWO, ONE, ONE])) == [None, value, value]


async def test_several_at_once_and_the_newest_counts(store: AnswerStore) -> None:
    first, second, third = VALUES[:3]
    await store.put({ONE: first, TWO: second})
    await store.put({ONE: third})
    assert list(await store.get([ONE, TWO])) == [third, second]
    await store.put({})
    assert list(await store.get([])) == []


async def test_what_is_too_large_is_not_kept(store: AnswerStore) -> None:
    await store.put({ONE: Piece("x" * (1 << 21), FinishReason.STOP, 1, 1), TWO: VALUES[0]})
    assert list(await store.get([ONE, TWO])) == [None, VALUES[0]]
