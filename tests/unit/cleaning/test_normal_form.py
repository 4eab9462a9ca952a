"""The normal form of many texts at once is that of each of them by Unicode's own normalization."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.cleaning.engine.content_keys import content_key, content_keys
from services.cleaning.engine.normal_form import all_folded, folded

TRICKY = "aÅßﬁ…！Ａ１　①℃½ｶﾞ"
TRICKY += "\u3099\u0301\u030a각\u1161\u11a8\u09c7\u09be\u200b\u00ad\u202e中文\u00a0\n👍🏽\U0001f1e8İſ\ud800ﾡ\U0002f800"


@settings(max_examples=2000)
@given(st.lists(st.text(st.one_of(st.sampled_from(TRICKY), st.characters()), max_size=8), max_size=5))
@example(["e\u0301", "", "\u1100\u1161"])
def test_texts_are_folded_together_as_each_alone(texts: list[str]) -> None:
    assert all_folded(texts) == [folded(text) for text in texts]
    assert content_keys(texts) == [content_key(text) for text in texts]


@pytest.mark.parametrize("start", range(0, 0x110000, 0x11000))
def test_every_character_is_folded_as_unicode_says(start: int) -> None:
    texts = [f"a{chr(code)}b" for code in range(start, start + 0x11000)]
    assert all_folded(texts) == [folded(text) for text in texts]


def test_the_normal_form_is_that_of_unicode() -> None:
    assert folded("ＡÅ…½①") == unicodedata.normalize("NFKC", "ＡÅ…½①").casefold() == "aå...1⁄21"
