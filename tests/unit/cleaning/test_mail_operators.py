"""Operators for mail: what is removed in English and Chinese, and that prose that looks similar stays to the letter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.registry import default_registry
from tests.recipes import parse_operators

REGISTRY = default_registry()


def cleaned(text: str, *items: object) -> str:
    (verdict,) = compile_recipe(REGISTRY, parse_operators(list(items))).clean_batch([(text, {})])
    assert verdict.rejection is None
    return verdict.text


def reason(text: str, *items: object) -> str:
    (verdict,) = compile_recipe(REGISTRY, parse_operators(list(items))).clean_batch([(text, {})])
    return verdict.rejection.reason if verdict.rejection else ""


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Yes.\n\nOn Mon, 5 Aug 2002, Ann wrote:\n> Shall we?\n> At noon?", "Yes."),
        ("On Mon, 5 Aug 2002 at 10:00,\nAnn Miller <ann@example.org> wrote:\n\n> Shall we?\n\nYes.", "\n\nYes."),
        ("Ann <ann@example.org> writes:\n> a\n>> b\n>\nNo.", "No."),
        ("好的。\n\n在 2020年1月1日，张三 写道：\n> 明天开会吗？\n> 几点？", "好的。"),
        ("Fine.\n-----Original Message-----\nFrom: Ann\nTo: Bob\n\nShall we?", "Fine."),
        ("收到。\n------------------ 原始邮件 ------------------\n发件人: 张三\n\n明天开会。", "收到。"),
        ('可以。\n在 2020-01-01 10:00:00，"张三" <zhang@example.cn> 写道：\n明天开会吗？', "可以。"),
        ("> one\nmine\n> two", "mine"),
        ("On Sun, 1 Sep 2002, Reza (eBuilt) mentioned:\n\n> 2. C and C++ force it.\n\nTrue.", "\n\nTrue."),
    ],
)
def test_quotes_are_removed_with_their_attribution(text: str, kept: str) -> None:
    assert cleaned(text, "strip_quotes") == kept


@pytest.mark.parametrize(
    "text",
    [
        "A value >5 mmol/l is high, and\n>5 mmol/l was measured\n>= 3 times.",
        "> a lone note in a text",
        "Type this:\n>>> print(1)\n>>> print(2)\nand see.",
        "In 1999 she wrote: a book is a friend.\nOn Monday he wrote:\nnothing at all.",
        "鲁迅写道：\n世上本没有路。",
        "a -> b\nb --> c\n--------\nOriginal Message",
        "The heading -----Original Message----- stands in a sentence.",
        "x > y and\ny > z",
    ],
)
def test_what_only_looks_like_a_quote_stays(text: str) -> None:
    assert cleaned(text, "strip_quotes") == text


FOOTER = (
    "_______________________________________________\nILUG mailing list\nilug@linux.ie\n"
    "http://www.linux.ie/mailman/listinfo/ilug for (un)subscription information."
)
ARMOR = "-----BEGIN PGP SIGNATURE-----\nVersion: GnuPG v1\n\niQCVAwUB\n=2YSa\n-----END PGP SIGNATURE-----"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Words.\n-- \nAnn Miller\nAcme", "Words."),
        ("Words.\n\n--\nAnn\n\n" + FOOTER, "Words."),
        ("Words.\n\n" + FOOTER + "\n\n", "Words."),
        ("正文。\n-- \n张三\n某公司", "正文。"),
        ("正文。\n\n发自我的iPhone", "正文。"),
        ("正文。\n==========\n取消订阅请点击这里", "正文。"),
        ("Words.\nSent from my iPhone", "Words."),
        ("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA1\n\nWords.\n- -- \nAnn\n" + ARMOR, "Words."),
        ("Words.\n------------------------ Yahoo! Groups Sponsor\nbuy\nTo unsubscribe from this group, send", "Words."),
    ],
)
def test_signatures_and_footers_are_removed(text: str, kept: str) -> None:
    assert cleaned(text, "strip_signatures") == kept


@pytest.mark.parametrize(
    "text",
    [
        "He said -- and she agreed -- that it rains.",
        "Title\n----------\nText below a title.",
        "-- \nAnn",
        "Words.\n--\n" + "\n".join(f"line {number}" for number in range(40)),
        "To unsubscribe means to leave a mailing list.\n\nThat was all.",
        "A letter that was sent from my home.\nIt came.",
        "a | b\n--------------\n1 | 2\n",
        "Words that end with empty lines.\n\n",
        "-----BEGIN PGP SIGNATURE-----\nis how it begins.",
    ],
)
def test_what_only_looks_like_a_signature_stays(text: str) -> None:
    assert cleaned(text, "strip_signatures") == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "See below.\n\nReceived: from a (b [1.2.3.4])\n\tby c; Mon, 5 Aug 2002\nFrom: Ann\nSubject: x\n\nHello.",
            "See below.\n\n\nHello.",
        ),
        ("Content-Type: text/plain; charset=us-ascii\n\nHello.", "\nHello."),
        (
            "The report:\n------=_NextPart_000_00B7\nContent-Type: text/plain\nContent-Transfer-Encoding: base64\n",
            "The report:\n",
        ),
    ],
)
def test_blocks_of_headers_are_removed(text: str, kept: str) -> None:
    assert cleaned(text, "strip_mail_headers") == kept


@pytest.mark.parametrize(
    "text",
    [
        "From: Ann\nDate: Monday\nTo: Bob\nSubject: lunch\n\nShall we?",
        "Content-Type: text/html says what a page is, and Received: says who had it.",
        "Name: Ann\nAge: 40\nReceived by: Bob\n",
        "Received: two parcels",
        "姓名: 张三\n电话: 无\n",
    ],
)
def test_forms_letters_and_sentences_stay(text: str) -> None:
    assert cleaned(text, "strip_mail_headers") == text


@given(st.text(alphabet="ab中 .,\n", max_size=200))
def test_text_without_marks_stays(text: str) -> None:
    for name in ("strip_quotes", "strip_signatures", "strip_mail_headers"):
        assert cleaned(text or "a", name) == (text or "a")


@given(
    st.lists(
        st.sampled_from(
            [
                "> a",
                ">",
                "-- ",
                "--",
                "text",
                "",
                "Ann wrote:",
                "Received: x",
                "Content-Type: a/b",
                "-" * 20,
                "unsubscribe",
            ]
        ),
        max_size=12,
    )
)
def test_a_second_time_nothing_changes_and_no_words_are_added(lines: list[str]) -> None:
    text = "\n".join(["Own words.", *lines])
    for name in ("strip_quotes", "strip_signatures", "strip_mail_headers"):
        once = cleaned(text, name)
        assert cleaned(once, name) == once
        assert set(once.split("\n")) <= set(text.split("\n"))


@pytest.mark.parametrize(
    ("text", "item", "expected"),
    [
        ("12 345 678 90 x", {"symbol_filter": {"max_digits": 0.5}}, "many_digits"),
        ("二〇二〇 year 2020", {"symbol_filter": {"max_digits": 0.5}}, ""),
        ("$$$ !!! *** win", {"symbol_filter": {"max_symbols": 0.5}}, "many_symbols"),
        ("Well, yes: 5 % (or 6).", {"symbol_filter": {"max_symbols": 0.5}}, ""),
        ("   ", {"symbol_filter": {"max_symbols": 0.0, "max_digits": 0.0}}, ""),
        ("Cheap VIAGRA here", {"word_filter": {"words": ["viagra"], "max_count": 0}}, "listed_words"),
        ("Sussex and Essex", {"word_filter": {"words": ["sex"], "max_count": 0}}, ""),
        ("买 代开发票 的", {"word_filter": {"words": ["发票"], "max_count": 0}}, "listed_words"),
        ("act now, or act  now", {"word_filter": {"words": ["act now"], "max_count": 1}}, ""),
        ("the cat and the dog", {"word_filter": {"words": ["the", "and"], "min_count": 3}}, ""),
        ("cat dog fish", {"word_filter": {"words": ["the", "and"], "min_count": 1}}, "few_listed_words"),
        ("This is a sentence in plain English.", {"language_filter": {"languages": ["en"]}}, ""),
        (
            "Dies ist ein ganz gewöhnlicher deutscher Satz.",
            {"language_filter": {"languages": ["en"]}},
            "wrong_language",
        ),
        ("这是一个普通的中文句子，没有别的意思。", {"language_filter": {"languages": ["zh"], "min_chars": 5}}, ""),
        ("ok", {"language_filter": {"languages": ["zh"]}}, ""),
    ],
)
def test_filters_by_symbols_words_and_language(text: str, item: object, expected: str) -> None:
    assert reason(text, item) == expected
